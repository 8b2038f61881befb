#include "capi/testing/predict.h"

#include <algorithm>
#include <span>

#include "base/error.h"
#include "capi/guard.h"
#include "predict/predictor.h"

using namespace moepic;

struct moepic_test_predictor {
    predict::Predictor predictor;
    int n_layer;

    void check(int layer) const {
        if (layer < 0 || layer >= n_layer) fail(Code::argument, "predictor: layer ", layer, " of ", n_layer);
    }
};

int32_t moepic_test_predictor_new(moepic_test_predictor** made, int32_t n_layer, int32_t source, double half_life, int32_t trial,
                                  int32_t pause) {
    return guard([&] {
        *made = new moepic_test_predictor{predict::Predictor(n_layer, {static_cast<predict::Source>(source), half_life, trial, pause}),
                                          n_layer};
    });
}

void moepic_test_predictor_free(moepic_test_predictor* predictor) {
    delete predictor;
}

int32_t moepic_test_predictor_foretell(moepic_test_predictor* predictor, int32_t layer, const int32_t* ids, int32_t n_ids) {
    return guard([&] {
        predictor->check(layer);
        predictor->predictor.foretell(layer, std::span(ids, static_cast<size_t>(n_ids)));
    });
}

int32_t moepic_test_predictor_guess(moepic_test_predictor* predictor, int32_t layer, int32_t* ids, int32_t n_room, int32_t* n_ids,
                                    int32_t* should_prefetch) {
    return guard([&] {
        predictor->check(layer);
        const auto guess = predictor->predictor.guess(layer);
        if (static_cast<int32_t>(guess.size()) > n_room) fail(Code::argument, "predictor: ", guess.size(), " ids, room for ", n_room);
        std::copy(guess.begin(), guess.end(), ids);
        *n_ids = static_cast<int32_t>(guess.size());
        *should_prefetch = predictor->predictor.should_prefetch(layer);
    });
}

int32_t moepic_test_predictor_observe(moepic_test_predictor* predictor, int32_t layer, const int32_t* used, int32_t n_used,
                                      int64_t useful_bytes, int64_t wasted_bytes, int64_t late_bytes, double saved_s, double lost_s) {
    return guard([&] {
        predictor->check(layer);
        predictor->predictor.observe(layer, std::span(used, static_cast<size_t>(n_used)),
                                     {useful_bytes, wasted_bytes, late_bytes, saved_s, lost_s});
    });
}

void moepic_test_predictor_forget(moepic_test_predictor* predictor) {
    predictor->predictor.forget();
}

int32_t moepic_test_predictor_score(moepic_test_predictor* predictor, int32_t layer, moepic_test_score* score) {
    return guard([&] {
        predictor->check(layer);
        const predict::Score& s = predictor->predictor.score(layer);
        *score = {s.n_guessed, s.n_used, s.n_right,  s.useful_bytes, s.wasted_bytes,  s.late_bytes,
                  s.saved_s,   s.lost_s, s.recall(), s.is_on,        s.n_switched_off};
    });
}
