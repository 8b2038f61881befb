// The decay of a gated delta net's state, for one head and token. Every processor compiles this one text, so libm's exp and log1p, which
// each processor rounds its own way, are not asked; operations are IEEE's, nothing fused but what is written as fma.
//
//   decay = e^(rate softplus(x)),  softplus(x) = log(1 + e^x) = max(x, 0) + log1p(e^-|x|)
//
// In double and rounded to float once. Relative errors, u = 2^-53: e^y less than 4 u; log1p less than 12 u, as all its terms are positive
// and e^-|x| carries 4 u; the exponent less than 16 u. So the double is wrong by less than (16 |rate softplus(x)| + 4) u, 2^-42 at the
// largest exponent that leaves a float above 0, and the float is the nearest one but where the truth lies that close to a tie.
// Not a number gives not a number; infinite x gives the limit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define MOEPIC_BOTH_SIDES __host__ __device__
#else
#define MOEPIC_BOTH_SIDES
#endif

namespace moepic::ops {

MOEPIC_BOTH_SIDES inline double power_of_two(int32_t n) {  // -1022 <= n <= 1023
    const uint64_t bits = static_cast<uint64_t>(n + 1023) << 52;
    double out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

// e^y = 2^n e^r, n = round(y / ln 2), |r| <= ln 2 / 2; ln 2 is taken off in two parts. e^r by its Taylor series to r^13 / 13!: the rest is
// below 2^-57. 2^n in two halves, so that results run down to 0.
MOEPIC_BOTH_SIDES inline double exp_double(double y) {
    if (!(y == y)) return y;
    y = y < -746.0 ? -746.0 : y > 710.0 ? 710.0 : y;  // 0 and infinity from here on
    const double n = rint(y * 0x1.71547652b82fep+0);
    const double r = fma(n, -0x1.abc9e3b39803fp-56, fma(n, -0x1.62e42fefa39efp-1, y));
    constexpr double terms[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                                1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
    double sum = 1.0 / 6227020800;
    for (const double term : terms) sum = fma(sum, r, term);
    const int32_t exponent = static_cast<int32_t>(n), half = exponent / 2;
    return sum * power_of_two(half) * power_of_two(exponent - half);
}

// log(1 + u) = 2 atanh(s), s = u / (2 + u), for 0 <= u <= 1: s^2 <= 1 / 9, and the series ends below 2^-57 of the sum.
MOEPIC_BOTH_SIDES inline double log1p_double(double u) {
    const double s = u / (2.0 + u), square = s * s;
    double sum = 0.0;
    for (int k = 33; k > 0; k -= 2) sum = fma(sum, square, 1.0 / k);
    return 2.0 * s * sum;
}

MOEPIC_BOTH_SIDES inline float decay_of(float rate, float x) {
    const double softplus = fmax(static_cast<double>(x), 0.0) + log1p_double(exp_double(-fabs(static_cast<double>(x))));
    return static_cast<float>(exp_double(static_cast<double>(rate) * softplus));
}

}  // namespace moepic::ops
