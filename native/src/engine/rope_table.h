// Angles of the rotary embedding for a run of positions: cos and sin per pair, with the model's frequency scaling folded in.
// Su et al. 2021 (RoPE); Peng et al. 2023 (YaRN), section 3.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"

namespace moepic {

class RopeTable {
public:
    // divisors: [n_rot / 2] or null (rope_freqs of Llama 3 and Gemma 4 files, Phi's factors).
    RopeTable(const RopeConfig& config, const float* divisors);
    // out: [n][n_rot], cos and sin of pair j at 2 j and 2 j + 1.
    void fill(int64_t first_pos, int64_t n, float* out) const noexcept;

private:
    std::vector<double> frequency_;  // radians per position
    double magnitude_ = 1.0;
};

}  // namespace moepic
