// moepic_sampler.
#include "capi/handles.h"

using namespace moepic;

void moepic_sampler_options_init(moepic_sampler_options* options) {
    if (!options) return;
    const SamplerOptions d;
    *options = {sizeof(moepic_sampler_options),
                d.temperature,
                d.top_k,
                d.top_p,
                d.min_p,
                d.typical_p,
                d.repeat_penalty,
                d.presence_penalty,
                d.frequency_penalty,
                d.penalty_last_n,
                d.seed,
                0,
                nullptr,
                nullptr};
}

int32_t moepic_sampler_create(moepic_sampler** out, const moepic_sampler_options* given) {
    return guard([&] {
        need(out, "out");
        const moepic_sampler_options o = read_options(given, moepic_sampler_options_init, "moepic_sampler_options");
        SamplerOptions options{.temperature = o.temperature,
                               .top_k = o.top_k,
                               .top_p = o.top_p,
                               .min_p = o.min_p,
                               .typical_p = o.typical_p,
                               .repeat_penalty = o.repeat_penalty,
                               .presence_penalty = o.presence_penalty,
                               .frequency_penalty = o.frequency_penalty,
                               .penalty_last_n = o.penalty_last_n,
                               .seed = o.seed,
                               .bias = {}};
        if (o.n_bias < 0) fail(Code::argument, "sampler: n_bias is ", o.n_bias);
        if (o.n_bias > 0) {
            need(o.bias_ids, "bias_ids");
            need(o.bias_values, "bias_values");
        }
        for (int32_t i = 0; i < o.n_bias; ++i) options.bias.emplace_back(o.bias_ids[i], o.bias_values[i]);
        auto handle = std::make_unique<moepic_sampler>();
        handle->sampler = std::make_unique<Sampler>(std::move(options));
        *out = handle.release();
    });
}

void moepic_sampler_free(moepic_sampler* sampler) {
    delete sampler;
}

int32_t moepic_sampler_sample(int32_t* token, moepic_sampler* sampler, const moepic_context* handle) {
    return guard([&] {
        need(handle, "context");
        const Context& context = *handle->context;
        if (context.logit_rows() == 0) fail(Code::argument, "sampler: nothing has been evaluated since the context was made or truncated");
        need(token, "token");
        need(sampler, "sampler");
        *token = sampler->sampler->sample(context.logits().last(static_cast<size_t>(context.model().config().n_vocab)));
    });
}

int32_t moepic_sampler_sample_logits(int32_t* token, moepic_sampler* sampler, const float* logits, int32_t n_vocab) {
    return guard([&] {
        need(token, "token");
        need(sampler, "sampler");
        need(logits, "logits");
        if (n_vocab < 1) fail(Code::argument, "sampler: n_vocab is ", n_vocab);
        *token = sampler->sampler->sample({logits, static_cast<size_t>(n_vocab)});
    });
}

int32_t moepic_sampler_accept(moepic_sampler* sampler, const int32_t* tokens, int64_t n) {
    return guard([&] {
        need(sampler, "sampler");
        if (n < 0) fail(Code::argument, "sampler: count is ", n);
        if (n > 0) need(tokens, "tokens");
        sampler->sampler->accept({tokens, static_cast<size_t>(n)});
    });
}

void moepic_sampler_reset(moepic_sampler* sampler) {
    if (sampler) sampler->sampler->reset();
}
