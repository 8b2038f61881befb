// The feed-forward of one layer: router, experts by granules, shared expert, reduction in fixed (expert, granule) order.
//
//   y = sum over the token's experts, ascending, of w_e * (p_e0 + p_e1 + ...)  + s * (p_s0 + p_s1 + ...)        p: partial of one granule
//   p_eg = down_eg quantized(act(gate_eg x) * up_eg x)         gate and up with their biases; down's joins the sum of an expert's partials
//
// This is its face and what every kind of it keeps; cpu_feed_forward.h computes on the host.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "engine/acts.h"
#include "engine/probe.h"
#include "engine/routing_trace.h"

namespace moepic {

class FeedForward {
public:
    explicit FeedForward(const Model& model);
    virtual ~FeedForward() = default;
    FeedForward(const FeedForward&) = delete;
    FeedForward& operator=(const FeedForward&) = delete;

    // Kinds of activation that layer il's router and experts want of their input.
    ActMask input_mask(int64_t il) const noexcept { return masks_[static_cast<size_t>(il)]; }
    // A batch of n tokens starts through the layers.
    void begin(int64_t n);
    // What each part reads, and where its sum is added, in memory of the steps. Most layers give all parts one input and one sum.
    struct Work {
        const float* residual;  // [n][n_embd], before any norm: what later layers' experts are guessed from
        const ActSet *router, *routed, *shared;
        float *x, *shared_x;  // [n][n_embd]; the same, or the shared expert's sum apart
    };
    // x[t] += feed-forward(acts[t]) for n tokens; acts hold the normed input.
    virtual void run(int64_t il, const Work& work, int64_t n, int64_t first_position, const Probe& probe) = 0;

    // One token through all layers and to its logits, where nothing between needs the host: by `give`, which gives every step and calls
    // run(), or by a repetition of what it gave before for a token of the same `shape`. False: nothing has run, and it goes as ever.
    virtual bool run_whole(int64_t, const Probe&, const std::function<void()>&) { return false; }
    // That took so long, until its logits were there.
    virtual void note_whole(double) {}

    virtual uint64_t scratch_bytes() const noexcept = 0;
    int64_t tasks_run() const noexcept { return tasks_run_; }
    int64_t experts_used() const noexcept { return experts_used_; }
    void reset_counts() noexcept { tasks_run_ = experts_used_ = 0; }
    // For benchmarks with weights whose router means nothing: experts come from a recording, [n_token][n_moe_layer][k] ids (and guesses for
    // the next layer's prefetch, or none), round and round; the router still runs, and all weights are 1 / k. Empty ids end it.
    void force_routing(std::vector<int32_t> ids, std::vector<int32_t> guesses, int64_t n_token);
    RoutingTrace& trace() noexcept { return trace_; }
    Timeline& timeline() noexcept { return timeline_; }

protected:
    // The k experts, or the guess, of the recording that routing is forced to follow.
    bool is_forced() const noexcept { return n_forced_ > 0; }
    bool has_forced_guesses() const noexcept { return !forced_guesses_.empty(); }
    const int32_t* forced_ids(int moe_layer, int64_t position, int64_t k) const noexcept {
        return forced_ids_.data() + forced_at(moe_layer, position, k);
    }
    const int32_t* forced_guess(int moe_layer, int64_t position, int64_t k) const noexcept {
        return forced_guesses_.data() + forced_at(moe_layer, position, k);
    }

    const Model& model_;
    int64_t batch_ = 0;  // tokens of the forward pass; its last layer may run fewer
    RoutingTrace trace_;
    Timeline timeline_;
    int64_t tasks_run_ = 0, experts_used_ = 0;

private:
    int64_t forced_at(int moe_layer, int64_t position, int64_t k) const noexcept {
        return (position % n_forced_ * trace_.n_layer() + moe_layer) * k;
    }
    std::vector<ActMask> masks_;
    std::vector<int32_t> forced_ids_, forced_guesses_;
    int64_t n_forced_ = 0;
};

// The sets of experts that a layer has.
template <class Visit>
void each_set(const LayerWeights& layer, Visit visit) {
    if (layer.routed) visit(*layer.routed, true);
    if (layer.shared) visit(*layer.shared, false);
}

}  // namespace moepic
