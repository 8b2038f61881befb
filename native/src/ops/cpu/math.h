// exp, the logistic function and the few lane reductions that softmax, norms and activations share, written over simd.h so that every
// instruction set gives the same bits. Knows no ops. Included only by sources that are compiled once per instruction set.
#pragma once

#include "ops/cpu/simd.h"

namespace moepic::ops::MOEPIC_ISA {

inline constexpr float kInfinity = __builtin_inff();

// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2. ln 2 is taken off in two parts (Cody and Waite): n * 0.693359375 is exact.
// e^r = 1 + r + r^2 q(r), q of degree 4, fitted for the least worst relative error of e^r (0.07 of 2^-24); rounding makes it at most 1 ulp.
// 2^n is multiplied in two halves, so results run down to the smallest subnormal with one rounding.
// -inf gives 0, +inf gives +inf, NaN stays NaN, exp(0) is exactly 1.
inline F16x f_exp(F16x x) {
    // Beyond these the result is 0 or infinity anyway. f_max and f_min give their second operand for NaN.
    x = f_min(f_set(89.0f), f_max(f_set(-104.0f), x));
    const F16x n = f_round(x * f_set(0x1.715476p+0f));
    F16x r = f_fma(n, f_set(-0x1.63p-1f), x);
    r = f_fma(n, f_set(0x1.bd0106p-13f), r);
    F16x q = f_fma(r, f_set(0x1.6a2256p-10f), f_set(0x1.123b02p-7f));
    q = f_fma(r, q, f_set(0x1.5558f8p-5f));
    q = f_fma(r, q, f_set(0x1.55549p-3f));
    q = f_fma(r, q, f_set(0x1.fffffcp-2f));
    const F16x power = f_fma(r * r, q, r) + f_set(1.0f);
    const I16x exponent = i_from_f(n);
    const I16x half = i_sar<1>(exponent);
    const I16x bias = i_set(127);
    return power * f_bits(i_shl<23>(half + bias)) * f_bits(i_shl<23>(exponent - half + bias));
}

inline F16x negate(F16x x) {
    return f_bits(i_bits(x) ^ i_set(INT32_MIN));
}

// a / (1 + e^-x): sigmoid for a = 1, silu for a = x. Division keeps large negative x at 0 (a / inf).
inline F16x over_logistic(F16x a, F16x x) {
    return a / (f_set(1.0f) + f_exp(negate(x)));
}

inline float first_lane(F16x a) {
    float lanes[kLanes];
    f_store(lanes, a);
    return lanes[0];
}

inline float exp_one(float x) {
    return first_lane(f_exp(f_set(x)));
}

// The fixed tree of a sum over lanes: i with i + 8, then + 4, + 2, + 1.
inline float sum_lanes(F16x a) {
    float lanes[kLanes];
    f_store(lanes, a);
    for (int step = kLanes / 2; step > 0; step /= 2) {
        for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
    }
    return lanes[0];
}

// Largest lane; with a NaN among them the result is unspecified (but the same everywhere).
inline float max_lanes(F16x a) {
    float lanes[kLanes];
    f_store(lanes, a);
    for (int step = kLanes / 2; step > 0; step /= 2) {
        for (int i = 0; i < step; ++i) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
    }
    return lanes[0];
}

// The first n lanes (0 < n < 16) from memory, the others `fill`; and back.
inline F16x f_load_some(const float* p, int64_t n, float fill) {
    float lanes[kLanes];
    for (float& lane : lanes) lane = fill;
    std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
    return f_load(lanes);
}
inline void f_store_some(float* p, int64_t n, F16x a) {
    float lanes[kLanes];
    f_store(lanes, a);
    std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}

}  // namespace moepic::ops::MOEPIC_ISA
