// Ops on single vectors of float32, compiled once per instruction set with equal bits (math.h, simd.h).
//
//   rms_norm   y = x / sqrt(mean(x^2) + eps) * weight     reads 2 n floats, writes n
//   layer_norm y = (x - mean) / sqrt(variance + eps) * weight + bias   reads 4 n, writes n
//   rope       (a, b) -> (a c - b s, a s + b c)           reads 2 n, writes n, in place
//   glu        out = gate / (1 + e^-gate) * up, or a cousin   reads 2 n, writes n
//   softmax    x = e^(x - max) / sum                      three passes over n, in place
//   soft_cap   x = cap tanh(x / cap)                      reads n, writes n, in place
//   sigmoid    x = 1 / (1 + e^-x);  add: y += x;  multiply: y *= x;  scale_add: y = fma(a, x, y);  scale: y *= a
//
// Vectors are an activation's width (hundreds to thousands of floats), so they live in L1 and L2 and instruction throughput is the bound;
// next to a matmul they are noise. Sums have 16 partials: element i goes to lane i % 16 in ascending order, then the fixed tree of
// sum_lanes. A tail shorter than 16 goes through the same vector code, padded with what changes nothing.
#include "ops/cpu/vector.h"

#include <cmath>

#include "ops/cpu/math.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

// GluKind::silu_clamped, as gpt-oss was trained; GGUF has no key for them.
// sqrt(8 / pi): tanh is taken by the logistic function of twice its argument.
constexpr float kGeluSlope = 1.5957691216057308f, kGeluCube = 0.044715f;
constexpr float kGluSlope = 1.702f, kGluLimit = 7.0f;

// x[i] = op(x[i]) with a padded last vector; `op` sees zeros in the padding.
template <class Op>
inline void map_in_place(float* x, int64_t n, Op op) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) f_store(x + i, op(f_load(x + i)));
    if (i < n) f_store_some(x + i, n - i, op(f_load_some(x + i, n - i, 0.0f)));
}

// out[i] = op(a[i], b[i]); out may be a or b.
template <class Op>
inline void map_two(const float* a, const float* b, float* out, int64_t n, Op op) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) f_store(out + i, op(f_load(a + i), f_load(b + i)));
    if (i < n) f_store_some(out + i, n - i, op(f_load_some(a + i, n - i, 0.0f), f_load_some(b + i, n - i, 0.0f)));
}

}  // namespace

void rms_norm(const float* x, const float* weight, float eps, float* y, int64_t n) {
    if (n <= 0) return;
    F16x squares = f_set(0.0f);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const F16x v = f_load(x + i);
        squares = f_fma(v, v, squares);
    }
    if (i < n) {
        const F16x v = f_load_some(x + i, n - i, 0.0f);
        squares = f_fma(v, v, squares);
    }
    const F16x inverse = f_set(1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(n) + eps));
    if (weight != nullptr) {
        map_two(x, weight, y, n, [&](F16x v, F16x w) { return v * inverse * w; });
    } else {
        map_two(x, x, y, n, [&](F16x v, F16x) { return v * inverse; });
    }
}

// The mean first, then squares of what is left: no cancellation where the mean is large beside the spread.
void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* y, int64_t n) {
    if (n <= 0) return;
    F16x sums = f_set(0.0f);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) sums = sums + f_load(x + i);
    if (i < n) sums = sums + f_load_some(x + i, n - i, 0.0f);
    const float mean = sum_lanes(sums) / static_cast<float>(n);
    const F16x centre = f_set(mean);
    F16x squares = f_set(0.0f);
    for (i = 0; i + kLanes <= n; i += kLanes) {
        const F16x v = f_load(x + i) - centre;
        squares = f_fma(v, v, squares);
    }
    if (i < n) {
        const F16x v = f_load_some(x + i, n - i, mean) - centre;
        squares = f_fma(v, v, squares);
    }
    const F16x inverse = f_set(1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(n) + eps));
    map_two(x, weight, y, n, [&](F16x v, F16x w) { return (v - centre) * inverse * w; });
    add(y, bias, n);
}

// One pair per step: 2 multiplies and 2 fused multiply-adds. A head is 32 to 256 wide, once per head and token.
void rope(float* head, const float* cos_sin, int64_t n_rot, RopePairing pairing) {
    const int64_t pairs = n_rot / 2;
    const int64_t step = pairing == RopePairing::norm ? 2 : 1;
    const int64_t apart = pairing == RopePairing::norm ? 1 : pairs;
    for (int64_t j = 0; j < pairs; ++j) {
        const float c = cos_sin[2 * j], s = cos_sin[2 * j + 1];
        float* const first = head + j * step;
        const float a = first[0], b = first[apart];
        first[0] = std::fma(a, c, -(b * s));
        first[apart] = std::fma(a, s, b * c);
    }
}

void glu(GluKind kind, const float* gate, const float* up, float* out, int64_t n) {
    switch (kind) {
        case GluKind::silu:
            map_two(gate, up, out, n, [](F16x g, F16x u) { return over_logistic(g, g) * u; });
            return;
        case GluKind::silu_clamped:
            map_two(gate, up, out, n, [](F16x g, F16x u) {
                // NaN is the second operand, which f_min and f_max answer with.
                const F16x low = f_min(f_set(kGluLimit), g), clamped = f_max(f_set(-kGluLimit), f_min(f_set(kGluLimit), u));
                return over_logistic(low, low * f_set(kGluSlope)) * (clamped + f_set(1.0f));
            });
            return;
        case GluKind::gelu:
            map_two(gate, up, out, n, [](F16x g, F16x u) {
                const F16x inner = f_fma(f_set(kGeluCube) * g * g, g, g);
                return over_logistic(g, f_set(kGeluSlope) * inner) * u;
            });
            return;
        case GluKind::sigmoid:
            map_two(gate, up, out, n, [](F16x g, F16x u) { return over_logistic(u, g); });
            return;
    }
}

void softmax(float* x, int64_t n) {
    if (n <= 0) return;
    F16x largest = f_set(-kInfinity);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) largest = f_max(largest, f_load(x + i));
    if (i < n) largest = f_max(largest, f_load_some(x + i, n - i, -kInfinity));
    const F16x top = f_set(max_lanes(largest));

    F16x total = f_set(0.0f);
    for (i = 0; i + kLanes <= n; i += kLanes) {
        const F16x e = f_exp(f_load(x + i) - top);
        f_store(x + i, e);
        total = total + e;
    }
    if (i < n) {
        const F16x e = f_exp(f_load_some(x + i, n - i, -kInfinity) - top);  // the padding adds e^-inf = 0
        f_store_some(x + i, n - i, e);
        total = total + e;
    }
    const F16x sum = f_set(sum_lanes(total));
    map_in_place(x, n, [&](F16x e) { return e / sum; });
}

void sigmoid(float* x, int64_t n) {
    map_in_place(x, n, [](F16x v) { return over_logistic(f_set(1.0f), v); });
}

void add(float* y, const float* x, int64_t n) {
    map_two(y, x, y, n, [](F16x a, F16x b) { return a + b; });
}

void multiply(float* y, const float* x, int64_t n) {
    map_two(y, x, y, n, [](F16x a, F16x b) { return a * b; });
}

void scale_add(float* y, float a, const float* x, int64_t n) {
    const F16x factor = f_set(a);
    map_two(y, x, y, n, [&](F16x old, F16x v) { return f_fma(factor, v, old); });
}

void scale(float* y, float a, int64_t n) {
    const F16x factor = f_set(a);
    map_in_place(y, n, [&](F16x v) { return v * factor; });
}

// tanh(y) = 2 / (1 + e^-2y) - 1. Small results keep the absolute error of the difference, some 2^-23 cap; the largest logit decides.
void soft_cap(float* x, float cap, int64_t n) {
    const F16x limit = f_set(cap), twice = f_set(2.0f / cap);
    map_in_place(x, n, [&](F16x v) { return (over_logistic(f_set(2.0f), v * twice) - f_set(1.0f)) * limit; });
}

void exp_each(float* x, int64_t n) {
    map_in_place(x, n, [](F16x v) { return f_exp(v); });
}

}  // namespace moepic::ops::MOEPIC_ISA
