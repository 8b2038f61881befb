// One sequence of tokens over a model: what has been evaluated, the logits of the last step, and the counters.
// Used by one thread at a time; cancel() may come from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/context_options.h"
#include "engine/decoder.h"

namespace moepic {

struct ContextStats {
    int64_t prefill_tokens = 0, decode_tokens = 0, reused_tokens = 0;
    double prefill_s = 0.0, decode_s = 0.0;
};

class Context {
public:
    Context(const Model& model, const ContextOptions& options);

    // Appends tokens; logits of the last one, or of all. Throws argument, context_full (before any compute), cancelled: then the tokens of
    // finished batches stay and the rest is as if never given. Tokens whose windows or states truncate() could not keep are computed again
    // first.
    void eval(std::span<const int32_t> tokens, bool all_logits);
    std::span<const float> logits() const noexcept { return logits_; }  // [rows][n_vocab]
    int64_t logit_rows() const noexcept { return logit_rows_; }
    std::span<const int32_t> tokens() const noexcept { return tokens_; }
    // Keeps the first n tokens. Where a layer's window before n is overwritten, or no state was kept at n, the next eval computes tokens
    // again: from the nearest position that all layers can go on from.
    void truncate(int64_t n);
    // Keeps the longest common prefix with `tokens`, at most all but one of them, and no more than all layers can go on from at once;
    // returns its length.
    int64_t reuse(std::span<const int32_t> tokens);

    void cancel() noexcept { cancelled_.store(true, std::memory_order_relaxed); }
    void clear_cancel() noexcept { cancelled_.store(false, std::memory_order_relaxed); }

    std::function<bool(int64_t done, int64_t total)> progress;  // called between batches of a prefill; false cancels
    Probe probe;

    const Model& model() const noexcept { return model_; }
    int64_t n_ctx() const noexcept { return n_ctx_; }
    const ContextStats& stats() const noexcept { return stats_; }
    void force_routing(std::vector<int32_t> ids, std::vector<int32_t> guesses, int64_t n_token) {
        feed_forward_->force_routing(std::move(ids), std::move(guesses), n_token);
    }
    RoutingTrace& trace() noexcept { return feed_forward_->trace(); }
    Timeline& timeline() noexcept { return feed_forward_->timeline(); }
    const FeedForward& feed_forward() const noexcept { return *feed_forward_; }
    // All that is held besides the model: the RAM budget counts it.
    uint64_t bytes() const noexcept { return kv_bytes() + state_bytes() + scratch_bytes(); }
    uint64_t kv_bytes() const noexcept { return kv_.bytes(); }
    uint64_t state_bytes() const noexcept { return state_.bytes(); }
    uint64_t scratch_bytes() const noexcept {
        return workspace_.bytes() + feed_forward_->scratch_bytes() + decoder_.scratch_bytes() + logits_.capacity() * sizeof(float);
    }
    // Of these, in the memory that steps work in: a device's, on a device.
    uint64_t device_bytes() const noexcept {
        return kv_.bytes() + state_.bytes() + feed_forward_->scratch_bytes() + decoder_.scratch_bytes();
    }
    void reset_stats() noexcept;

private:
    void compute(std::span<const int32_t> tokens, int64_t keep_at, int64_t n_logits, float* logits, const Probe& seen_by);
    void recompute();
    int64_t nearest(int64_t n) const noexcept;
    void rewind(int64_t n) noexcept;

    const Model& model_;
    const int64_t n_ctx_, n_batch_;
    Workspace workspace_;
    std::unique_ptr<Steps> steps_;
    std::unique_ptr<FeedForward> feed_forward_;
    KvCache kv_;
    SequenceState state_;
    Decoder decoder_;
    std::vector<int32_t> tokens_;
    std::vector<float> logits_;
    int64_t logit_rows_ = 0;
    std::atomic<bool> cancelled_{false};
    ContextStats stats_;
};

}  // namespace moepic
