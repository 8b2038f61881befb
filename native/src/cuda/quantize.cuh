// Activations to int8 on the device (ops/cpu/activations.h has formula and layout): Kernels::quantize_act by warps. Norms, gates and heads
// quantize the rows they have just made with it, so it is a function of a thread block; quantize.cu is the step of the table.
//
// A warp takes a step of 256 elements, eight to a lane, so that loads and stores are 512 and 128 bytes wide: one block of q8_256, or eight
// of q8_32. Maximum and sums are integers: any order is exact.
#pragma once

#include "cuda/math.cuh"
#include "cuda/simt.h"
#include "ops/cpu/activations.h"

namespace moepic::device {

inline constexpr int kStep = 256;
static_assert(kActKinds == 3 && static_cast<int>(ops::ActKind::f32) == 0 && static_cast<int>(ops::ActKind::q8_32) == 1 &&
              static_cast<int>(ops::ActKind::q8_256) == 2);

__device__ inline int lane_id() {
    return static_cast<int>(threadIdx.x % 32);
}

// Scale of a block from the largest |x|, as bits: they order like the floats, with NaN above infinity.
struct ActScale {
    float d, per_d;
    bool is_finite;
};
__device__ inline ActScale act_scale(uint32_t largest) {
    const float amax = f_bits(largest);
    if (amax < ops::kActTiny) return {0.0f, 0.0f, true};
    return {amax / 127.0f, 127.0f / amax, largest < 0x7f800000u};
}

__device__ inline int32_t act_code(float x, const ActScale& scale) {
    return scale.is_finite ? __float2int_rn(x * scale.per_d) : 0;
}

__device__ inline uint32_t largest_of(uint32_t mine, int n_lanes) {
    for (int step = 1; step < n_lanes; step *= 2) {
        const uint32_t other = __shfl_xor_sync(kAllLanes, mine, step);
        mine = mine > other ? mine : other;
    }
    return mine;
}

// Four codes of a lane, packed and summed.
struct ActCodes {
    uint32_t q;
    int32_t sum;
};
__device__ inline ActCodes act_codes(const float (&v)[4], const ActScale& scale) {
    ActCodes out{0, 0};
    for (int i = 0; i < 4; ++i) {
        const int32_t code = act_code(v[i], scale);
        out.q |= (static_cast<uint32_t>(code) & 255u) << (8 * i);
        out.sum += code;
    }
    return out;
}

__device__ inline uint32_t magnitude(const float (&v)[4]) {
    uint32_t largest = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t bits = i_bits(v[i]) & 0x7fffffffu;
        largest = largest > bits ? largest : bits;
    }
    return largest;
}

// Step `step` of a row by one warp, all lanes: v[h][i] is element 128 h + 4 lane + i of the step. Blocks beyond `cols` are not written.
__device__ inline void quantize_step_256(const float (&v)[2][4], int64_t step, std::byte* row) {
    auto* block = reinterpret_cast<ops::Act256*>(row) + step;
    const uint32_t low = magnitude(v[0]), high = magnitude(v[1]);
    const ActScale scale = act_scale(largest_of(low > high ? low : high, 32));
    const int lane = lane_id();
    if (lane == 0) block->d = scale.d;
    for (int h = 0; h < 2; ++h) {
        const ActCodes codes = act_codes(v[h], scale);
        reinterpret_cast<uint32_t*>(block->q)[32 * h + lane] = codes.q;
        int32_t sum = codes.sum + __shfl_xor_sync(kAllLanes, codes.sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        const int32_t sum_32 = sum + __shfl_xor_sync(kAllLanes, sum, 4);
        // Sums stand in the order 0 2 1 3 of each four.
        const int i16 = 8 * h + lane / 4, i32 = 4 * h + lane / 8;
        if (lane % 4 == 0) block->sum16[(i16 & ~3) | ((i16 & 1) << 1) | ((i16 >> 1) & 1)] = static_cast<int16_t>(sum);
        if (lane % 8 == 0) block->sum32[(i32 & ~3) | ((i32 & 1) << 1) | ((i32 >> 1) & 1)] = static_cast<int16_t>(sum_32);
    }
}

__device__ inline void quantize_step_32(const float (&v)[2][4], int64_t step, int64_t cols, std::byte* row) {
    const int lane = lane_id();
    for (int h = 0; h < 2; ++h) {
        const int64_t b = 8 * step + 4 * h + lane / 8;
        auto* block = reinterpret_cast<ops::Act32*>(row) + b;
        const bool exists = b < cols / ops::Act32::len;
        const ActScale scale = act_scale(largest_of(magnitude(v[h]), 8));
        const ActCodes codes = act_codes(v[h], scale);
        int32_t sum = codes.sum;
        for (int other = 1; other < 8; other *= 2) sum += __shfl_xor_sync(kAllLanes, sum, other);
        if (!exists) continue;  // to the next half only: the shuffles above are behind every lane
        reinterpret_cast<uint32_t*>(block->q)[lane % 8] = codes.q;
        if (lane % 8 != 0) continue;
        block->d = scale.d;
        block->s = scale.d * static_cast<float>(sum);
        block->neg_sum = -sum;
    }
}

// Elements of a step as its lanes have them; 0 beyond the end.
__device__ inline void load_step(const float* x, int64_t step, int64_t cols, float (&v)[2][4]) {
    for (int h = 0; h < 2; ++h) {
        for (int i = 0; i < 4; ++i) {
            const int64_t k = step * kStep + 128 * h + 4 * lane_id() + i;
            v[h][i] = k < cols ? x[k] : 0.0f;
        }
    }
}

// out = x [cols] in the form `kind`, by one warp.
__device__ inline void quantize_by(ops::ActKind kind, const float* x, int64_t cols, std::byte* out) {
    if (kind == ops::ActKind::f32) {
        for (int64_t k = lane_id(); k < cols; k += 32) reinterpret_cast<float*>(out)[k] = x[k];
        return;
    }
    for (int64_t step = 0; step * kStep < cols; ++step) {
        float v[2][4];
        load_step(x, step, cols, v);
        if (kind == ops::ActKind::q8_32)
            quantize_step_32(v, step, cols, out);
        else
            quantize_step_256(v, step, out);
    }
}

// Row `row` of acts from x [cols], in the kinds of `mask` (bit ActKind), by the warps of a thread block: `warp` of n_warps calls with the
// whole warp. x must be visible to the block (__syncthreads after writing it). cols: whole blocks of the kinds asked for.
__device__ inline void quantize_row(uint32_t mask, const float* x, int64_t cols, const Acts& acts, int64_t row, int warp, int n_warps) {
    for (int64_t step = warp; step * kStep < cols; step += n_warps) {
        float v[2][4];
        load_step(x, step, cols, v);
        if (mask & 1u) {
            auto* floats = reinterpret_cast<float*>(acts.data[0] + static_cast<size_t>(row) * acts.stride[0]) + step * kStep;
            for (int64_t k = lane_id(); k < kStep && step * kStep + k < cols; k += 32) floats[k] = x[step * kStep + k];
        }
        if (mask & 2u) quantize_step_32(v, step, cols, acts.data[1] + static_cast<size_t>(row) * acts.stride[1]);
        if (mask & 4u) quantize_step_256(v, step, acts.data[2] + static_cast<size_t>(row) * acts.stride[2]);
    }
}

}  // namespace moepic::device
