// The arithmetic all encoders share: least squares of a scale (and an offset) against codes that are themselves being chosen.
// Private to quant/. Knows levels, not bytes: packing is in the encode_*.cpp files.
//
// The task for one block: choose codes q from a set of levels and a scale d (or d and an offset) with the least
// sum of w (x - d q)^2. For fixed q the best d is a quotient of sums; for fixed d the best q is the nearest level; but alternating from
// one start stops in a poor local minimum. So a short list of starts is scanned (where the largest weight is sent, in levels), each
// judged by the error it has after its d has been solved for, and the best one is alternated further.
//
// Sums are trees over lanes, not running sums: the compiler may vectorise them without leave to reorder, so the result does not
// depend on the instruction set. Errors are sums of residuals, never differences of large sums: at 8 bits those would drown.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "quant/half.h"

// Marks an encoder: compiled for each of these instruction sets with everything it calls inlined, chosen once when the library is
// loaded. No clone may fuse a multiply with an add, so all give the same bytes. Only where gcc and glibc can do it, and not under
// sanitizers, where it takes minutes to compile.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MOEPIC_WIDE [[gnu::flatten, gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#else
#define MOEPIC_WIDE
#endif

namespace moepic::codec {

// ---- small pieces ----

// Sum of v, overwriting it.
template <int N>
inline float sum(float (&v)[N]) noexcept {
    for (int half = N / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) v[i] += v[i + half];
    }
    return v[0];
}

// Nearest integer, ties to even, for |v| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
inline float round_near(float v) noexcept {
    return (v + 12582912.0f) - 12582912.0f;
}

inline float clamp(float v, float lo, float hi) noexcept {
    v = v < lo ? lo : v;
    return v > hi ? hi : v;
}

inline int clamp_round(float v, int lo, int hi) noexcept {
    return static_cast<int>(round_near(clamp(v, static_cast<float>(lo), static_cast<float>(hi))));
}

// A scale as binary16 that is finite and not lost: beyond 65504 it saturates, below the smallest subnormal it becomes that one.
inline uint16_t scale_to_f16(float d) noexcept {
    const uint16_t bits = f32_to_f16(clamp(d, -65504.0f, 65504.0f));
    if ((bits & 0x7fffu) != 0 || d == 0.0f) return bits;
    return static_cast<uint16_t>(bits | 1u);
}

// Weights beyond what any block with a binary16 scale can say (65504 * 127 * 127 < 2^31) are cut here, so that squares stay finite.
inline constexpr float kLargest = 0x1p40f;

// Copy one block of weights and the weights of their errors, made safe for the arithmetic.
//   x  NaN becomes 0; an infinity becomes the largest finite magnitude in the block, so it costs its neighbours no precision.
//   w  importance over its largest value in the block, plus a little, so that no sum of weights is zero; 1 without importance.
template <int N>
inline void load(const float* in, const float* importance, float largest, float (&x)[N], float (&w)[N]) noexcept {
    bool strange = false;
    for (int i = 0; i < N; ++i) {
        x[i] = in[i];
        strange |= !(std::fabs(in[i]) <= largest);
    }
    if (strange) {
        float peak = 0.0f;
        for (int i = 0; i < N; ++i) {
            if (std::isfinite(in[i])) peak = std::max(peak, std::min(std::fabs(in[i]), largest));
        }
        for (int i = 0; i < N; ++i) x[i] = std::isnan(in[i]) ? 0.0f : clamp(in[i], -peak, peak);
    }
    float most = 0.0f;
    if (importance != nullptr) {
        for (int i = 0; i < N; ++i) most = importance[i] > most ? importance[i] : most;
    }
    if (!(most > 0.0f && most <= std::numeric_limits<float>::max())) {
        for (int i = 0; i < N; ++i) w[i] = 1.0f;
        return;
    }
    for (int i = 0; i < N; ++i) {
        const float share = importance[i] / most;
        w[i] = (share > 0.0f ? share : 0.0f) + 1e-6f;
    }
}

// ---- levels: what a code may be worth, in units of d ----

// All integers from lo to hi; the code of level v is v - lo.
template <int Lo, int Hi>
struct Integers {
    static constexpr float lo = Lo, hi = Hi;
    static float nearest(float v) noexcept { return round_near(clamp(v, lo, hi)); }
    static int code(float level) noexcept { return static_cast<int>(level) - Lo; }
};

// A table of 16 levels in ascending order; nearest() counts the borders below v, which vectorises where a search would not.
struct Table {
    float level[16], border[15], step[15];
    constexpr explicit Table(const int8_t (&values)[16]) : level{}, border{}, step{} {
        for (int i = 0; i < 16; ++i) level[i] = values[i];
        for (int i = 0; i < 15; ++i) {
            step[i] = level[i + 1] - level[i];
            border[i] = 0.5f * (level[i + 1] + level[i]);
        }
    }
};

template <const Table& T>
struct Tabulated {
    static float nearest(float v) noexcept {
        float level = T.level[0];
        for (int i = 0; i < 15; ++i) level += v > T.border[i] ? T.step[i] : 0.0f;
        return level;
    }
    static int code(float level) noexcept {
        int code = 0;
        for (int i = 0; i < 15; ++i) code += level > T.border[i];
        return code;
    }
};

// ---- one scale: x = d q ----

// Codes for a given d, as levels in q; returns the weighted squared error. d may be negative or zero.
template <class Levels, int N>
inline float choose_levels(const float* x, const float* w, float d, float* q) noexcept {
    const float per_d = d == 0.0f ? 0.0f : 1.0f / d;
    float error[N];
    for (int i = 0; i < N; ++i) {
        q[i] = Levels::nearest(x[i] * per_d);
        const float r = x[i] - d * q[i];
        error[i] = w[i] * r * r;
    }
    return sum(error);
}

// N starts, evenly from one target level to another.
template <size_t N>
constexpr std::array<float, N> spread(float from, float to) {
    std::array<float, N> targets{};
    for (size_t i = 0; i < N; ++i) targets[i] = from + (to - from) * static_cast<float>(i) / static_cast<float>(N - 1);
    return targets;
}

// Starts that send the peak to either end of lopsided levels.
template <size_t A, size_t B>
constexpr std::array<float, A + B> both_ends(const std::array<float, A>& low, const std::array<float, B>& high) {
    std::array<float, A + B> targets{};
    for (size_t i = 0; i < A; ++i) targets[i] = low[i];
    for (size_t i = 0; i < B; ++i) targets[A + i] = high[i];
    return targets;
}

struct ScaleFit {
    float d = 0.0f;
    float error = std::numeric_limits<float>::max();
};

// Round to the levels at scale `start`, then solve for d: the correction to `start` comes from the residuals.
template <class Levels, int N>
inline ScaleFit solve_scale(const float* x, const float* w, float start) noexcept {
    const float per_d = 1.0f / start;
    float rr[N], rq[N], qq[N];
    for (int i = 0; i < N; ++i) {
        const float q = Levels::nearest(x[i] * per_d);
        const float r = x[i] - start * q;
        const float wq = w[i] * q;
        rr[i] = w[i] * r * r;
        rq[i] = wq * r;
        qq[i] = wq * q;
    }
    const float sum_rr = sum(rr), sum_rq = sum(rq), sum_qq = sum(qq);
    if (!(sum_qq > 0.0f)) return {start, sum_rr};
    const float correction = sum_rq / sum_qq;
    return {start + correction, sum_rr - correction * sum_rq};
}

// The weight of largest magnitude, with its sign.
template <int N>
inline float signed_peak(const float* x) noexcept {
    float lo = x[0], hi = x[0];
    for (int i = 1; i < N; ++i) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    return -lo > hi ? lo : hi;
}

// The best d. `targets`: the levels (not rounded) the peak is sent to by the starts. 0 for a block of zeros.
template <class Levels, int N, size_t K>
inline ScaleFit fit_scale(const float* x, const float* w, const std::array<float, K>& targets) noexcept {
    const float peak = signed_peak<N>(x);
    if (std::fabs(peak) < 1e-20f) return {0.0f, 0.0f};
    ScaleFit best;
    for (const float target : targets) {
        const ScaleFit fit = solve_scale<Levels, N>(x, w, peak / target);
        if (fit.error < best.error) best = fit;
    }
    for (int round = 0; round < 2 && best.d != 0.0f; ++round) {
        const ScaleFit fit = solve_scale<Levels, N>(x, w, best.d);
        if (!(fit.error < best.error)) break;
        best = fit;
    }
    return best;
}

// ---- scale and offset: x = a q - b, q in 0..top ----

struct AffineFit {
    float a = 0.0f, b = 0.0f;
    float error = std::numeric_limits<float>::max();
};

// Codes for given a and b; returns the weighted squared error.
template <int Top, int N>
inline float choose_affine(const float* x, const float* w, float a, float b, float* q) noexcept {
    const float per_a = a == 0.0f ? 0.0f : 1.0f / a;
    float error[N];
    for (int i = 0; i < N; ++i) {
        q[i] = round_near(clamp((x[i] + b) * per_a, 0.0f, static_cast<float>(Top)));
        const float r = x[i] - (a * q[i] - b);
        error[i] = w[i] * r * r;
    }
    return sum(error);
}

// Round at (a, b), then solve for both from the residuals. With `b_from_zero`, b is not allowed below zero.
template <int Top, int N>
inline AffineFit solve_affine(const float* x, const float* w, float a, float b, float sum_w, bool b_from_zero) noexcept {
    const float per_a = 1.0f / a;
    float rr[N], r1[N], rq[N], wq[N], qq[N];
    for (int i = 0; i < N; ++i) {
        const float q = round_near(clamp((x[i] + b) * per_a, 0.0f, static_cast<float>(Top)));
        const float r = x[i] - (a * q - b);
        wq[i] = w[i] * q;
        qq[i] = wq[i] * q;
        r1[i] = w[i] * r;
        rr[i] = r1[i] * r;
        rq[i] = r1[i] * q;
    }
    const float srr = sum(rr), sr = sum(r1), srq = sum(rq), sq = sum(wq), sqq = sum(qq);
    const float det = sum_w * sqq - sq * sq;
    if (det > 1e-7f * sum_w * sqq) {
        const float da = (sum_w * srq - sr * sq) / det;
        const float db = (sq * srq - sqq * sr) / det;
        if (!b_from_zero || b + db >= 0.0f) return {a + da, b + db, srr - da * srq + db * sr};
    }
    if (b_from_zero && sqq > 0.0f) {  // on the border b = 0: one unknown; residuals there are r - b
        const float rq0 = srq - b * sq, da = rq0 / sqq;
        return {a + da, 0.0f, srr - 2.0f * b * sr + b * b * sum_w - da * rq0};
    }
    return {a, b, srr};
}

// One start of an affine fit: how many levels of the range are cut off below and above.
struct Cut {
    float below, above;
};

// The starts of codes with 4 and 5 bits: the range as it is, a little wider, and narrower at both ends or at one. Narrower pays because
// an end of the range is often a single weight.
inline constexpr Cut cuts_of_range[] = {{-.4f, -.4f}, {0, 0},      {.4f, .4f},  {.8f, .8f},  {1.2f, 1.2f}, {1.7f, 1.7f},
                                        {2.3f, 2.3f}, {-.3f, .4f}, {.4f, -.3f}, {0, .9f},    {.9f, 0},     {.4f, 1.5f},
                                        {1.5f, .4f},  {.1f, 1.9f}, {1.9f, .1f}, {.9f, 2.2f}, {2.2f, .9f}};

template <int Top, int N, size_t K>
inline AffineFit fit_affine(const float* x, const float* w, bool b_from_zero, const Cut (&cuts)[K]) noexcept {
    float lo = x[0], hi = x[0], lanes[N];
    for (int i = 0; i < N; ++i) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
        lanes[i] = w[i];
    }
    const float sum_w = sum(lanes);
    if (b_from_zero && lo > 0.0f) lo = 0.0f;
    if (!(hi - lo > 1e-20f)) return {0.0f, -lo, 0.0f};
    AffineFit best;
    for (const Cut& cut : cuts) {
        const float a = (hi - lo) / (static_cast<float>(Top) + cut.below + cut.above);
        const float b = -(lo + cut.below * a);
        const AffineFit fit = solve_affine<Top, N>(x, w, a, b_from_zero ? std::max(b, 0.0f) : b, sum_w, b_from_zero);
        if (fit.error < best.error && fit.a > 0.0f) best = fit;
    }
    for (int round = 0; round < 2 && best.a > 0.0f; ++round) {
        const AffineFit fit = solve_affine<Top, N>(x, w, best.a, best.b, sum_w, b_from_zero);
        if (!(fit.error < best.error && fit.a > 0.0f)) break;
        best = fit;
    }
    return best;
}

}  // namespace moepic::codec
