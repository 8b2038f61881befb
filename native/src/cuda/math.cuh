// exp, the logistic function, gated activations and the lane reductions that steps share, one lane of ops/cpu/math.h and vector.cpp each:
// the same float operations in the same order, so the same bits. Needs -fmad=false (every fma is written out), IEEE division and
// subnormals. Only the sign and payload of a NaN are a processor's own.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/simt.h"
#include "ops/ops.h"

namespace moepic::device {

// As x86: the second operand where either is NaN.
__device__ inline float f_max(float a, float b) {
    return a > b ? a : b;
}
__device__ inline float f_min(float a, float b) {
    return a < b ? a : b;
}

__device__ inline float f_bits(uint32_t a) {
    float out;
    memcpy(&out, &a, sizeof out);
    return out;
}
__device__ inline uint32_t i_bits(float a) {
    uint32_t out;
    memcpy(&out, &a, sizeof out);
    return out;
}

// binary16, as stored.
__device__ inline float f_half(uint16_t bits) {
    __half half;
    memcpy(&half, &bits, sizeof half);
    return __half2float(half);
}

// f_exp of ops/cpu/math.h, which derives it.
__device__ inline float f_exp(float x) {
    x = f_min(89.0f, f_max(-104.0f, x));
    const float n = rintf(x * 0x1.715476p+0f);
    float r = __fmaf_rn(n, -0x1.63p-1f, x);
    r = __fmaf_rn(n, 0x1.bd0106p-13f, r);
    float q = __fmaf_rn(r, 0x1.6a2256p-10f, 0x1.123b02p-7f);
    q = __fmaf_rn(r, q, 0x1.5558f8p-5f);
    q = __fmaf_rn(r, q, 0x1.55549p-3f);
    q = __fmaf_rn(r, q, 0x1.fffffcp-2f);
    const float power = __fmaf_rn(r * r, q, r) + 1.0f;
    const int32_t exponent = n == n ? static_cast<int32_t>(n) : 0;  // a NaN is in `power` already
    const int32_t half = exponent >> 1;
    return power * f_bits(static_cast<uint32_t>(half + 127) << 23) * f_bits(static_cast<uint32_t>(exponent - half + 127) << 23);
}

// a / (1 + e^-x): sigmoid for a = 1, silu for a = x.
__device__ inline float over_logistic(float a, float x) {
    return a / (1.0f + f_exp(-x));
}

// Kernels::glu of one element; the constants are vector.cpp's.
__device__ inline float glu(ops::GluKind kind, float gate, float up) {
    switch (kind) {
        case ops::GluKind::silu:
            return over_logistic(gate, gate) * up;
        case ops::GluKind::silu_clamped: {
            const float low = f_min(7.0f, gate), clamped = f_max(-7.0f, f_min(7.0f, up));
            return over_logistic(low, low * 1.702f) * (clamped + 1.0f);
        }
        case ops::GluKind::gelu: {
            const float inner = __fmaf_rn(0.044715f * gate * gate, gate, gate);
            return over_logistic(gate, 1.5957691216057308f * inner) * up;
        }
        case ops::GluKind::sigmoid:
            return over_logistic(up, gate);
    }
    return 0.0f;
}

// Over each 16 lanes of a warp, by the tree of ops/cpu/math.h: i with i + 8, then + 4, + 2, + 1. All 32 lanes take part; every lane gets
// the result of its 16.
__device__ inline float sum_lanes(float v) {
    for (int step = 8; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
    return v;
}
// The order of operands decides which of a NaN and a number, or of two zeros, is taken.
__device__ inline float max_lanes(float v) {
    for (int step = 8; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, v, step);
        v = (threadIdx.x & static_cast<unsigned>(step)) ? f_max(other, v) : f_max(v, other);
    }
    return v;
}

}  // namespace moepic::device
