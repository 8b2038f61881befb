// Routing as it happens, in the records of docs/trace-format.md: what every token used in every MoE layer, what had been predicted and was
// found, and how its granules were served. The file around the records is written by moepic_gguf/trace.py.
//
// Belongs to one context and is used by its thread between and inside evals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/streamer.h"
#include "model/config.h"

namespace moepic {

class RoutingTrace {
public:
    explicit RoutingTrace(const Config& config);

    bool is_on() const noexcept { return is_on_; }
    void turn(bool on);
    int n_layer() const noexcept { return n_layer_; }
    int n_used() const noexcept { return n_used_; }
    size_t record_bytes() const noexcept;

    // Records for the next n tokens; one token alone is decode.
    void begin(int64_t n);
    // Layer `moe_layer` of the batch's last `n` tokens (the last layer of a prompt runs only those whose logits are wanted). ids, weights
    // [n][k]. The report is of the whole batch and is noted with its first token.
    void note(int moe_layer, int64_t n, int64_t k, int64_t n_granules, const int32_t* ids, const float* weights, const PassReport& report);
    // What was recorded since the last call.
    std::vector<std::byte> take();

private:
    size_t layer_bytes() const noexcept;
    int n_layer_ = 0, n_used_ = 0;
    bool is_on_ = false;
    int64_t batch_ = 0;
    std::vector<std::byte> records_;
};

}  // namespace moepic
