// moepic_context: evaluate tokens, read logits.
#include <cstddef>

#include "capi/handles.h"

using namespace moepic;

namespace {

constexpr int32_t kTypeF16 = 1, kTypeQ8_0 = 8;

Context& need_context(const moepic_context* handle) {
    need(handle, "context");
    return *handle->context;
}

std::span<const int32_t> token_span(const int32_t* tokens, int64_t n) {
    if (n < 0) fail(Code::argument, "tokens: count is ", n);
    if (n > 0) need(tokens, "tokens");
    return {tokens, static_cast<size_t>(n)};
}

}  // namespace

ContextOptions moepic::read_context_options(const moepic_context_options* given) {
    const moepic_context_options o = read_options(given, moepic_context_options_init, "moepic_context_options");
    if (o.kv_type != kTypeF16 && o.kv_type != kTypeQ8_0)
        fail(Code::argument, "context: kv_type is ", o.kv_type, ", expected ", kTypeF16, " (F16) or ", kTypeQ8_0, " (Q8_0)");
    return {o.n_ctx, o.n_batch, o.n_threads, o.kv_type == kTypeQ8_0 ? ops::KvType::q8_0 : ops::KvType::f16};
}

void moepic_context_options_init(moepic_context_options* options) {
    if (options) *options = {sizeof(moepic_context_options), 0, 0, 0, kTypeF16};
}

int32_t moepic_context_create(moepic_context** out, const moepic_model* model, const moepic_context_options* given) {
    return guard([&] {
        need(out, "out");
        need(model, "model");
        const ContextOptions options = read_context_options(given);
        auto handle = std::make_unique<moepic_context>();
        handle->context = std::make_unique<Context>(*model->model, options);
        *out = handle.release();
    });
}

void moepic_context_free(moepic_context* context) {
    delete context;
}

int32_t moepic_context_n_ctx(const moepic_context* context) {
    return context ? static_cast<int32_t>(context->context->n_ctx()) : 0;
}

int32_t moepic_context_eval(moepic_context* context, const int32_t* tokens, int64_t n, int32_t all_logits) {
    return guard([&] { need_context(context).eval(token_span(tokens, n), all_logits != 0); });
}

int32_t moepic_context_logits(const float** out, int64_t* n_rows, int64_t* n_vocab, const moepic_context* handle) {
    return guard([&] {
        need(out, "out");
        const Context& context = need_context(handle);
        if (context.logit_rows() == 0) fail(Code::argument, "logits: nothing has been evaluated since the context was made or truncated");
        *out = context.logits().data();
        if (n_rows) *n_rows = context.logit_rows();
        if (n_vocab) *n_vocab = context.model().config().n_vocab;
    });
}

int64_t moepic_context_tokens(const int32_t** out, const moepic_context* context) {
    if (!context) return 0;
    if (out) *out = context->context->tokens().data();
    return static_cast<int64_t>(context->context->tokens().size());
}

int32_t moepic_context_truncate(moepic_context* context, int64_t n) {
    return guard([&] { need_context(context).truncate(n); });
}

int64_t moepic_context_reuse(moepic_context* context, const int32_t* tokens, int64_t n) {
    int64_t kept = 0;
    const int code = guard([&] { kept = need_context(context).reuse(token_span(tokens, n)); });
    return code ? code : kept;
}

void moepic_context_cancel(moepic_context* context) {
    if (context) context->context->cancel();
}

void moepic_context_clear_cancel(moepic_context* context) {
    if (context) context->context->clear_cancel();
}

void moepic_context_set_progress(moepic_context* context, moepic_progress_fn progress, void* user) {
    if (!context) return;
    context->context->progress = nullptr;
    if (progress) {
        context->context->progress = [=](int64_t done, int64_t total) {
            return progress("prefill", static_cast<uint64_t>(done), static_cast<uint64_t>(total), user) == 0;
        };
    }
}

void moepic_context_set_probe(moepic_context* handle, moepic_probe_fn probe, void* user) {
    if (!handle) return;
    Context* context = handle->context.get();
    context->probe = nullptr;
    if (probe) {
        context->probe = [=](const ProbeEvent& event) {
            const moepic_probe seen = {static_cast<int32_t>(event.kind),
                                       static_cast<int32_t>(event.layer),
                                       static_cast<int32_t>(event.expert),
                                       static_cast<int32_t>(event.granule),
                                       event.first_position,
                                       event.n_tokens,
                                       event.width,
                                       event.values,
                                       event.ids};
            if (probe(&seen, user) != 0) context->cancel();
        };
    }
}

void moepic_context_set_trace(moepic_context* context, int32_t on) {
    if (context) context->context->trace().turn(on != 0);
}

int64_t moepic_context_trace(const void** out, int64_t* record_bytes, moepic_context* handle) {
    if (!handle) return 0;
    RoutingTrace& trace = handle->context->trace();
    handle->trace = trace.take();
    if (out) *out = handle->trace.data();
    if (record_bytes) *record_bytes = static_cast<int64_t>(trace.record_bytes());
    return static_cast<int64_t>(handle->trace.size() / trace.record_bytes());
}

static_assert(sizeof(moepic_event) == sizeof(Event) && offsetof(moepic_event, kind) == offsetof(Event, kind));

void moepic_context_set_timeline(moepic_context* context, int32_t on) {
    if (context) context->context->timeline().turn(on != 0);
}

int64_t moepic_context_timeline(const moepic_event** out, moepic_context* handle) {
    if (!handle) return 0;
    handle->timeline = handle->context->timeline().take();
    if (out) *out = reinterpret_cast<const moepic_event*>(handle->timeline.data());
    return static_cast<int64_t>(handle->timeline.size());
}

int32_t moepic_context_stats(moepic_stats* out, const moepic_context* handle) {
    return guard([&] {
        const Context& context = need_context(handle);
        const ContextStats& s = context.stats();
        moepic_stats stats{};
        stats.prefill_tokens = s.prefill_tokens;
        stats.decode_tokens = s.decode_tokens;
        stats.reused_tokens = s.reused_tokens;
        stats.prefill_s = s.prefill_s;
        stats.decode_s = s.decode_s;
        stats.expert_tasks = context.feed_forward().tasks_run();
        stats.experts_used = context.feed_forward().experts_used();
        stats.kv_bytes = context.kv_bytes();
        stats.scratch_bytes = context.scratch_bytes();
        stats.state_bytes = context.state_bytes();
        write_info(out, stats, "moepic_stats");
    });
}

void moepic_context_reset_stats(moepic_context* context) {
    if (context) context->context->reset_stats();
}

int32_t moepic_context_logprobs(float* token_logprob, int32_t* top_ids, float* top_logprobs, const moepic_context* handle, int64_t row,
                                int32_t token, int32_t top_n) {
    return guard([&] {
        const Context& context = need_context(handle);
        const int64_t n_vocab = context.model().config().n_vocab;
        if (row < 0 || row >= context.logit_rows()) fail(Code::argument, "logprobs: row ", row, " of ", context.logit_rows());
        if (token < 0 || token >= n_vocab) fail(Code::argument, "logprobs: token ", token, " is outside 0 to ", n_vocab - 1);
        if (top_n < 0 || top_n > n_vocab) fail(Code::argument, "logprobs: top_n is ", top_n, ", expected 0 to ", n_vocab);
        if (top_n > 0) {
            need(top_ids, "top_ids");
            need(top_logprobs, "top_logprobs");
        }
        float of_token = 0.0f;
        log_probabilities(context.logits().subspan(static_cast<size_t>(row * n_vocab), static_cast<size_t>(n_vocab)), token,
                          {top_ids, static_cast<size_t>(top_n)}, {top_logprobs, static_cast<size_t>(top_n)}, of_token);
        if (token_logprob) *token_logprob = of_token;
    });
}
