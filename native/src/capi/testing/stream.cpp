#include "capi/testing/stream.h"

#include "capi/handles.h"

using namespace moepic;

int32_t moepic_test_force_routing(moepic_context* handle, const int32_t* ids, const int32_t* guesses, int64_t n_token) {
    return guard([&] {
        need(handle, "context");
        Context& context = *handle->context;
        if (!ids) {
            context.force_routing({}, {}, 0);
            return;
        }
        if (n_token < 1) fail(Code::argument, "routing: ", n_token, " tokens");
        int64_t k = 0, n_layer = 0, n_expert = 0;
        for (const LayerConfig& layer : context.model().config().layers) {
            if (layer.n_expert == 0) continue;
            if (n_layer++ && (k != layer.n_expert_used || n_expert != layer.n_expert))
                fail(Code::argument, "routing: layers differ in their experts");
            k = layer.n_expert_used, n_expert = layer.n_expert;
        }
        const auto n = static_cast<size_t>(n_token * n_layer * k);
        for (size_t i = 0; i < n; ++i) {
            const bool ascends = i % static_cast<size_t>(k) == 0 || ids[i] > ids[i - 1];
            if (ids[i] < 0 || ids[i] >= n_expert || !ascends || (guesses && (guesses[i] < 0 || guesses[i] >= n_expert)))
                fail(Code::argument, "routing: id ", ids[i], " at ", i, "; expected 0 to ", n_expert - 1, ", ascending inside a token");
        }
        context.force_routing({ids, ids + n}, guesses ? std::vector<int32_t>(guesses, guesses + n) : std::vector<int32_t>(), n_token);
    });
}

int32_t moepic_test_stream_check(const moepic_model* handle) {
    return guard([&] {
        need(handle, "model");
        if (ExpertService* experts = handle->model->experts()) experts->check();
    });
}
