// A gated delta net as the mixer of a layer (Yang et al. 2024; Qwen3-Next). From the normed input of each token:
//
//   [q | k | v] = silu(conv(W_in x))            a short causal convolution per channel
//   q, k to unit length per head, q / sqrt(head_dim_k);  beta = sigmoid(W_beta x);  decay = e^(rate softplus(W_alpha x + bias))
//   o_h = delta rule over the head's state (ops.h);  y = W_out [rms(o_h) silu(z_h)],  z = W_gate x
//
// Convolution and rule go token after token, so decode and prefill do the same arithmetic. States come from and go to the slots of
// SequenceState.
#pragma once

#include <cstdint>

#include "engine/sequence_state.h"
#include "engine/steps.h"

namespace moepic {

class DeltaNet {
public:
    DeltaNet(const Config& config, Steps& steps, int64_t n_batch);

    static ActMask input_mask(const StateMixerWeights& w) noexcept;
    // out[t] = mixer(acts[t]) for n tokens; acts hold the normed input. Carries layer il's state along the legs of `state`.
    void run(int64_t il, const ActSet& acts, int64_t n, const SequenceState& state, const device::PassPlace* place, float* out);
    uint64_t scratch_bytes() const noexcept { return memory_.size(); }

private:
    void place(Carver& carver);

    const Config& model_config_;
    const DeltaNetConfig& config_;
    Steps& steps_;
    const int64_t n_batch_;
    Memory memory_;
    float* channels_ = nullptr;  // [n_batch][q | k | v]
    float* z_ = nullptr;         // [n_batch][value rows]
    float* mixed_ = nullptr;     // [n_batch][value rows]
    float* raw_beta_ = nullptr;  // [n_batch][n_head_v, twice that where alphas are among them]
    float* alpha_ = nullptr;     // [n_batch][n_head_v]
    float *beta_ = nullptr, *decay_ = nullptr;
    ActSet out_acts_;
};

}  // namespace moepic
