#include "predict/predictor.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/error.h"

namespace moepic::predict {

void validate(const Options& options) {
    const int source = static_cast<int>(options.source);
    if (source < 0 || source > static_cast<int>(Source::next_layer))
        fail(Code::argument, "predictor: ", source, " is no source of guesses");
    if (!(options.half_life > 0.0) || options.trial < 1 || options.pause < 1) {
        fail(Code::argument, "predictor: half-life ", options.half_life, ", trial ", options.trial, " and pause ", options.pause,
             " tokens; expected all above 0");
    }
}

Predictor::Predictor(int n_layer, const Options& options) : options_(options) {
    validate(options_);
    if (n_layer < 1) fail(Code::argument, "predictor: ", n_layer, " layers, expected at least 1");
    layers_.resize(n_layer);
    for (Layer& layer : layers_) layer.score.is_on = options_.source != Source::none;
}

void Predictor::foretell(int layer, std::span<const int32_t> ids) {
    if (options_.source == Source::next_layer) layers_[layer].guess.assign(ids.begin(), ids.end());
}

void Predictor::observe(int il, std::span<const int32_t> used, const Outcome& outcome) {
    Layer& layer = layers_[il];
    Score& score = layer.score;
    if (!layer.guess.empty()) {
        score.n_guessed += static_cast<int64_t>(layer.guess.size());
        for (const int32_t id : used) {
            if (id < 0) continue;
            ++score.n_used;
            score.n_right += std::find(layer.guess.begin(), layer.guess.end(), id) != layer.guess.end();
        }
        judge(layer, outcome);
    }
    layer.guess.clear();
    if (options_.source == Source::previous_token) {
        std::copy_if(used.begin(), used.end(), std::back_inserter(layer.guess), [](int32_t id) { return id >= 0; });
    }
}

void Predictor::judge(Layer& layer, const Outcome& outcome) {
    Score& score = layer.score;
    score.useful_bytes += outcome.useful_bytes, score.wasted_bytes += outcome.wasted_bytes, score.late_bytes += outcome.late_bytes;
    score.saved_s += outcome.saved_s, score.lost_s += outcome.lost_s;
    layer.balance_s = layer.balance_s * std::exp2(-1.0 / options_.half_life) + outcome.saved_s - outcome.lost_s;
    ++layer.tokens;
    if (score.is_on && layer.tokens >= options_.trial && layer.balance_s < 0.0) {
        score.is_on = false, layer.tokens = 0;
        ++score.n_switched_off;
    } else if (!score.is_on && layer.tokens >= options_.pause) {
        score.is_on = true, layer.tokens = 0, layer.balance_s = 0.0;
    }
}

void Predictor::forget() {
    for (Layer& layer : layers_) layer.guess.clear();
}

}  // namespace moepic::predict
