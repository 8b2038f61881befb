#include "engine/context.h"

#include <algorithm>
#include <cassert>
#include <chrono>

#include "base/error.h"
#include "engine/cpu_feed_forward.h"
#include "engine/cpu_steps.h"
#include "engine/device_feed_forward.h"
#include "engine/device_steps.h"

namespace moepic {
namespace {

constexpr int64_t kMaxContext = int64_t{1} << 24;
constexpr int64_t kMaxBatch = 8192;

int64_t choose_n_ctx(const Model& model, int64_t asked) {
    if (asked < 0 || asked > kMaxContext) fail(Code::argument, "context: n_ctx is ", asked, ", expected 0 (default) to ", kMaxContext);
    return asked ? asked : std::min<int64_t>(model.config().n_ctx_train, 4096);
}

int64_t choose_n_batch(int64_t asked, int64_t n_ctx) {
    if (asked < 0 || asked > kMaxBatch) fail(Code::argument, "context: n_batch is ", asked, ", expected 0 (default) to ", kMaxBatch);
    return std::min(asked ? asked : 512, n_ctx);
}

std::unique_ptr<Steps> make_steps(const Model& model, Workspace& workspace) {
    if (const DeviceModel* device = model.device()) return std::make_unique<DeviceSteps>(*device);
    return std::make_unique<CpuSteps>(model, workspace);
}

std::unique_ptr<FeedForward> make_feed_forward(const Model& model, Workspace& workspace, const Steps& steps, int64_t n_batch) {
    if (model.device())
        return std::make_unique<DeviceFeedForward>(model, workspace, dynamic_cast<const DeviceSteps&>(steps).stream(), n_batch);
    return std::make_unique<CpuFeedForward>(model, workspace, n_batch);
}

double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Context::Context(const Model& model, const ContextOptions& options)
    : model_(model),
      n_ctx_(choose_n_ctx(model, options.n_ctx)),
      n_batch_(choose_n_batch(options.n_batch, n_ctx_)),
      workspace_(model.kernels(), options.n_threads, model.n_in_place()),
      steps_(make_steps(model, workspace_)),
      feed_forward_(make_feed_forward(model, workspace_, *steps_, n_batch_)),
      kv_(*steps_, model.config(), options.kv_type, n_ctx_, n_batch_),
      state_(*steps_, model.config()),
      decoder_(model, workspace_, *steps_, *feed_forward_, kv_, n_batch_, n_ctx_) {
    tokens_.reserve(static_cast<size_t>(n_ctx_));
    logits_.reserve(static_cast<size_t>(model.config().n_vocab));
}

void Context::eval(std::span<const int32_t> tokens, bool all_logits) {
    const int64_t n = static_cast<int64_t>(tokens.size()), held = static_cast<int64_t>(tokens_.size());
    const int64_t n_vocab = model_.config().n_vocab;
    if (n == 0) fail(Code::argument, "eval: no tokens were given");
    for (int64_t i = 0; i < n; ++i) {
        if (tokens[static_cast<size_t>(i)] < 0 || tokens[static_cast<size_t>(i)] >= n_vocab) {
            fail(Code::argument, "eval: token ", i, " is ", tokens[static_cast<size_t>(i)], ", the vocabulary has ids 0 to ", n_vocab - 1);
        }
    }
    if (n > n_ctx_ - held) {
        fail(Code::context_full, "context: ", n, " tokens after ", held, " do not fit ", n_ctx_, " positions (", held + n - n_ctx_,
             " too many; shorten the input or load with a larger n_ctx)");
    }
    logit_rows_ = 0;
    logits_.resize(static_cast<size_t>((all_logits ? n : 1) * n_vocab));
    recompute();
    for (int64_t done = 0; done < n;) {
        if (progress && n > 1 && !progress(done, n)) fail(Code::cancelled, "eval: cancelled after ", done, " of ", n, " tokens");
        const int64_t batch = std::min(n_batch_, n - done);
        const bool last = done + batch == n;
        const double start = now_s();
        // An answer is generated anew from the last token of its prompt.
        const int64_t keep_at = last && n > 1 ? batch - 1 : -1, n_logits = all_logits ? batch : last ? 1 : 0;
        compute(tokens.subspan(static_cast<size_t>(done), static_cast<size_t>(batch)), keep_at, n_logits,
                logits_.data() + (all_logits ? done * n_vocab : 0), probe);
        tokens_.insert(tokens_.end(), tokens.begin() + done, tokens.begin() + done + batch);
        done += batch;
        (n == 1 ? stats_.decode_s : stats_.prefill_s) += now_s() - start;
        (n == 1 ? stats_.decode_tokens : stats_.prefill_tokens) += batch;
    }
    logit_rows_ = all_logits ? n : 1;
    if (progress && n > 1 && !progress(n, n)) fail(Code::cancelled, "eval: cancelled after all ", n, " tokens");
}

// One batch, after the positions that are held. `keep_at`: see SequenceState::begin.
void Context::compute(std::span<const int32_t> tokens, int64_t keep_at, int64_t n_logits, float* logits, const Probe& seen_by) {
    assert(state_.is_empty() || state_.position() == kv_.held());
    const int64_t n = static_cast<int64_t>(tokens.size());
    for (bool is_done = false; !is_done;) {
        kv_.begin(n);
        state_.begin(n, keep_at);
        try {
            decoder_.forward(kv_, state_, tokens.data(), n, kv_.held(), n_logits, logits, seen_by,
                             [this](int64_t) { return cancelled_.exchange(false, std::memory_order_relaxed); });
            is_done = true;
        } catch (const Error& error) {
            // Nothing of ours is reserved here: a device's driver wants memory for the code or the stacks of a kernel. A pass that stops
            // has added nothing, so it can begin anew.
            if (error.code() != Code::no_memory || !model_.device() || !model_.device()->make_room(1, error)) throw;
        }
    }
    kv_.finish(n);
    state_.finish();
}

// Tokens that a truncation kept, but whose windows or states are gone; a probe has seen them.
void Context::recompute() {
    const int64_t n = static_cast<int64_t>(tokens_.size());
    while (kv_.held() < n) {
        const double start = now_s();
        const int64_t batch = std::min(n_batch_, n - kv_.held());
        compute({tokens_.data() + kv_.held(), static_cast<size_t>(batch)}, -1, 0, nullptr, {});
        stats_.prefill_s += now_s() - start;
        stats_.prefill_tokens += batch;
    }
}

// The latest of the first n positions that keys, values and states can all go on from. Windows give n or nothing, so asking them once more
// about the state's answer settles it.
int64_t Context::nearest(int64_t n) const noexcept {
    return kv_.nearest(state_.nearest(kv_.nearest(std::min(n, kv_.held()))));
}

void Context::rewind(int64_t n) noexcept {
    const int64_t to = nearest(n);
    kv_.rewind(to);
    state_.rewind(to);
}

void Context::truncate(int64_t n) {
    if (n < 0 || n > static_cast<int64_t>(tokens_.size())) {
        fail(Code::argument, "context: can't keep ", n, " tokens of ", tokens_.size());
    }
    if (n == static_cast<int64_t>(tokens_.size())) return;
    tokens_.resize(static_cast<size_t>(n));
    rewind(n);
    logit_rows_ = 0;
}

int64_t Context::reuse(std::span<const int32_t> tokens) {
    const size_t limit = tokens.empty() ? 0 : std::min(tokens.size() - 1, tokens_.size());
    size_t same = 0;
    while (same < limit && tokens[same] == tokens_[same]) ++same;
    const int64_t kept = nearest(static_cast<int64_t>(same));
    truncate(kept);
    stats_.reused_tokens += kept;
    return kept;
}

void Context::reset_stats() noexcept {
    stats_ = {};
    feed_forward_->reset_counts();
}

}  // namespace moepic
