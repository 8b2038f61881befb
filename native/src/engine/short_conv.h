// A short convolution between two gates as the mixer of a layer (LFM2): [b | c | x] = W_in input;  y = W_out (c conv(b x)).
// States come from and go to the slots of SequenceState.
#pragma once

#include <cstdint>

#include "engine/sequence_state.h"
#include "engine/steps.h"

namespace moepic {

class ShortConv {
public:
    ShortConv(const Config& config, Steps& steps, int64_t n_batch);

    static ActMask input_mask(const StateMixerWeights& w) noexcept { return act_mask(w.in); }
    // out[t] = mixer(acts[t]) for n tokens; acts hold the normed input. Carries layer il's state along the legs of `state`.
    void run(int64_t il, const ActSet& acts, int64_t n, const SequenceState& state, const device::PassPlace* place, float* out);
    uint64_t scratch_bytes() const noexcept { return memory_.size(); }

private:
    void place(Carver& carver);

    const Config& config_;
    Steps& steps_;
    const int64_t n_batch_;
    Memory memory_;
    float *b_ = nullptr, *c_ = nullptr, *x_ = nullptr;  // [n_batch][n_embd]
    ActSet out_acts_;
};

}  // namespace moepic
