// Test-only: the short convolution and the gated delta rule of native/src/ops, per instruction set, for pytest.
#pragma once

#include <stdint.h>

#ifndef MOEPIC_API
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#endif

/* cdef: begin */
/* Overwrites channels [channel_begin, channel_end) of x [n_tokens][n_channels]; taps [n_taps][n_channels]; from (may be null: zeros) and to
   are [n_taps - 1][n_channels]. */
MOEPIC_API int moepic_test_causal_conv(int isa, float* x, int64_t n_tokens, const float* taps, int64_t n_taps, int64_t n_channels,
                                       const float* from, float* to, int64_t channel_begin, int64_t channel_end, int silu);

/* q, k [n_tokens][head_dim_k]; v, out [n_tokens][head_dim_v]; decay, beta [n_tokens]; from (may be null: zeros) and to are
   [head_dim_k][head_dim_v up to a multiple of 16]. */
MOEPIC_API int moepic_test_delta_rule(int isa, int64_t n_tokens, int64_t head_dim_k, int64_t head_dim_v, const float* q, const float* k,
                                      const float* v, const float* decay, const float* beta, float* out, const float* from, float* to);

/* out[i] = e^(rate[i] log(1 + e^x[i])), the decay of a delta net's state */
MOEPIC_API int moepic_test_decay(const float* rate, const float* x, float* out, int64_t n);

/* y *= x */
MOEPIC_API int moepic_test_multiply(int isa, float* y, const float* x, int64_t n);
/* cdef: end */
