// Quantize one token's activations to int8 (activations.h has the formula and the layout), 16 of a token at a time.
// Reads 4 bytes per element and writes about 1.3; a maximum over lanes and integer sums do not depend on their order, so all instruction
// sets agree. Next to a matmul this is noise; it is bound by the instructions of the lane reductions.
#include "ops/cpu/activations.h"

#include <cstring>

#include "ops/cpu/bytes.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

struct Scale {
    float d, per_d;
    int32_t mask;  // of codes: 0 where d is not finite, so that what can't be converted leaves no trace in codes and sums
};

// |x| compared as integers: the order of non-negative floats, with NaN above infinity, so that a NaN can't be lost in the maximum.
template <int n>
inline Scale block_scale(const float* x) {
    const I16x magnitude = i_set(0x7fffffff);
    I16x top = i_bits(f_load(x)) & magnitude;
    for (int i = kLanes; i < n; i += kLanes) top = i_max(top, i_bits(f_load(x + i)) & magnitude);
    const int32_t bits = i_max_lane(top);
    float amax;
    std::memcpy(&amax, &bits, sizeof amax);
    if (amax < kActTiny) return {0.0f, 0.0f, -1};
    return {amax / 127.0f, 127.0f / amax, bits < 0x7f800000 ? -1 : 0};
}

inline I16x codes(const float* x, const Scale& scale) {
    return i_from_f(f_load(x) * f_set(scale.per_d)) & i_set(scale.mask);
}

void quantize_32(const float* x, int64_t cols, std::byte* out) {
    auto* block = reinterpret_cast<Act32*>(out);
    for (int64_t k = 0; k < cols; k += Act32::len, ++block) {
        const Scale scale = block_scale<Act32::len>(x + k);
        const I16x lo = codes(x + k, scale), hi = codes(x + k + kLanes, scale);
        i_store_bytes(block->q, lo);
        i_store_bytes(block->q + kLanes, hi);
        const int32_t sum = i_sum_lanes(lo + hi);
        block->d = scale.d;
        block->s = scale.d * static_cast<float>(sum);
        block->neg_sum = -sum;
    }
}

// Place of sum i among its group of four (activations.h).
inline int pair_order(int i) {
    return (i & ~3) | ((i & 1) << 1) | ((i >> 1) & 1);
}

void quantize_256(const float* x, int64_t cols, std::byte* out) {
    auto* block = reinterpret_cast<Act256*>(out);
    for (int64_t k = 0; k < cols; k += Act256::len, ++block) {
        const Scale scale = block_scale<Act256::len>(x + k);
        block->d = scale.d;
        for (int run = 0; run < 8; ++run) {
            const float* from = x + k + 32 * run;
            const I16x lo = codes(from, scale), hi = codes(from + kLanes, scale);
            i_store_bytes(block->q + 32 * run, lo);
            i_store_bytes(block->q + 32 * run + kLanes, hi);
            const int32_t sum_lo = i_sum_lanes(lo), sum_hi = i_sum_lanes(hi);
            block->sum16[pair_order(2 * run)] = static_cast<int16_t>(sum_lo);
            block->sum16[pair_order(2 * run + 1)] = static_cast<int16_t>(sum_hi);
            block->sum32[pair_order(run)] = static_cast<int16_t>(sum_lo + sum_hi);
        }
    }
}

}  // namespace

void quantize_act(ActKind kind, const float* x, int64_t cols, std::byte* out) {
    switch (kind) {
        case ActKind::f32:
            std::memcpy(out, x, static_cast<size_t>(cols) * sizeof(float));
            return;
        case ActKind::q8_32:
            quantize_32(x, cols, out);
            return;
        case ActKind::q8_256:
            quantize_256(x, cols, out);
            return;
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
