// Activations as the matmul kernels read them: per token a run of blocks, each with its int8 codes and everything derived from them that
// the arithmetic of tiles.h needs. One struct per block, so that a kernel addresses a token by one pointer.
//
//   amax = max |x| of the block;  d = amax / 127;  q = round_half_even(x * (127 / amax));  |q| <= 127
//   Blocks with amax < 2^-100 count as zero (127 / amax must stay finite). A block with a NaN or infinity gets d NaN or infinite and
//   codes 0, and so gives non-finite output (0 * inf is NaN): silence would hide the fault.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace moepic::ops {

struct Act32 {
    static constexpr int len = 32;
    float d;
    float s;          // d * float(sum q), one rounding; meets the m of Q4_1 and Q5_1
    int32_t neg_sum;  // -sum q; starts the sum of types whose codes carry an offset
    int8_t q[32];
};
static_assert(sizeof(Act32) == 44);

// Sums stand in the order 0 2 1 3, 4 6 5 7, ..: pairs of them meet the even and the odd bytes of a dword of sub-block scales.
struct Act256 {
    static constexpr int len = 256;
    float d;
    int16_t sum32[8];
    int16_t sum16[16];
    int8_t q[256];
};
static_assert(sizeof(Act256) == 308);

inline constexpr float kActTiny = 0x1p-100f;

}  // namespace moepic::ops
