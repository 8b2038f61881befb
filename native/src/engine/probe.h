// A window into the forward pass for calibration and traces. Calls are serialised; the caller decides what to keep.
#pragma once

#include <cstdint>
#include <functional>

namespace moepic {

enum class ProbeKind : int { ffn_input = 0, routing = 1, expert_act = 2 };

struct ProbeEvent {
    ProbeKind kind;
    int64_t layer, expert, granule;
    int64_t first_position, n_tokens, width;
    const float* values;
    const int32_t* ids;
};

using Probe = std::function<void(const ProbeEvent&)>;  // empty: nobody looks

}  // namespace moepic
