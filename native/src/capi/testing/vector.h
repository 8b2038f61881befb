// Test-only: the vector ops, the KV layout and attention of native/src/ops, per instruction set, for pytest.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef MOEPIC_API
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#endif

/* cdef: begin */
/* isa is 0 scalar, 1 AVX2, 2 AVX-512 in all of these. available: 1 when this build and machine can run it. */
MOEPIC_API int moepic_test_isa(int isa, int* available, const char** name);

/* Elementwise or whole-vector ops in place on x[n]. op 0: exp, 1: sigmoid, 2: softmax, 3: soft cap at 30. */
MOEPIC_API int moepic_test_vector(int isa, int op, float* x, int64_t n);

/* weight may be null; y may be x. */
MOEPIC_API int moepic_test_rms_norm(int isa, const float* x, const float* weight, float eps, float* y, int64_t n);

/* y may be x. */
MOEPIC_API int moepic_test_layer_norm(int isa, const float* x, const float* weight, const float* bias, float eps, float* y, int64_t n);

/* pairing 0: norm (2j, 2j+1), 1: neox (j, j + n_rot/2). cos_sin is [n_rot / 2][2]. */
MOEPIC_API int moepic_test_rope(int isa, float* head, const float* cos_sin, int64_t n_rot, int pairing);

/* kind 0: out = silu(gate) * up, 1: the clamped one of gpt-oss, 2: gelu(gate) * up, 3: sigmoid(gate) * up. */
MOEPIC_API int moepic_test_glu(int isa, int kind, const float* gate, const float* up, float* out, int64_t n);

/* y = fma(a, x, y); y + x where plain is not 0; a y where x is null. */
MOEPIC_API int moepic_test_scale_add(int isa, float* y, float a, const float* x, int64_t n, int plain);

/* type 0: f16, 1: q8_0. keys and values are kv_bytes each, 64-byte aligned. */
typedef struct {
    int type;
    int64_t n_head_kv, head_dim_k, head_dim_v, capacity;
    void* keys;
    void* values;
} moepic_test_kv;
MOEPIC_API int moepic_test_kv_bytes(const moepic_test_kv* kv, int64_t* keys_bytes, int64_t* values_bytes);

/* Store n positions from `pos` on, round a capacity that is a multiple of 256: k [n][n_head_kv * head_dim_k], v [n][n_head_kv *
 * head_dim_v]. */
MOEPIC_API int moepic_test_kv_store(int isa, const moepic_test_kv* kv, int64_t pos, int64_t n, const float* k, const float* v);

/* One attention job over tokens [token_begin, token_end) and heads [head_begin, head_end); sinks may be null. A
   negative window is chunks of so many positions. repeats > 1 is for timing;
   seconds (may be null) is the least CPU time of one of them. */
MOEPIC_API int moepic_test_attention(int isa, const moepic_test_kv* kv, const float* q, float* out, int64_t n_head, int64_t first_pos,
                                     int64_t token_begin, int64_t token_end, int64_t head_begin, int64_t head_end, float scale,
                                     int64_t window, const float* sinks, int repeats, double* seconds);

/* The same for all heads, chunk by chunk from the last to the first, and then joined. */
MOEPIC_API int moepic_test_attention_split(int isa, const moepic_test_kv* kv, const float* q, float* out, int64_t n_head, int64_t first_pos,
                                           int64_t n_tokens, float scale, int64_t window, const float* sinks);
/* cdef: end */
