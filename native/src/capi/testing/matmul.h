// Test-only: tiles, quantized activations and matmul of native/src/ops per instruction set, and a plain reference that knows neither.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef MOEPIC_API
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#endif

/* cdef: begin */
/* isa is 0 scalar, 1 AVX2, 2 AVX-512; type is a GGUF type id. */

/* Bytes of the tiles of a matrix, and of one token's activations for it. */
MOEPIC_API int moepic_test_matmul_bytes(uint32_t type, int64_t rows, int64_t cols, int64_t* tiles, int64_t* acts);

/* Re-tile rows of GGUF blocks that lie row_stride bytes apart; past: ops::TileStores. repeats > 1 is for timing; seconds (may be null) is
 * the shortest of them. */
MOEPIC_API int moepic_test_tile(int isa, uint32_t type, const void* src, int64_t row_stride, int64_t rows, int64_t cols, void* dst,
                                int past, int repeats, double* seconds);

/* Activations of n tokens x[n][cols] for weights of a type, one after another in out. */
MOEPIC_API int moepic_test_quantize(int isa, uint32_t type, const float* x, int64_t n, int64_t cols, void* out, int repeats,
                                    double* seconds);

/* What quantized activations mean: codes [n][cols] and scales [n][cols / block], read back from moepic_test_quantize's bytes. */
MOEPIC_API int moepic_test_act_codes(uint32_t type, const void* acts, int64_t n, int64_t cols, int8_t* codes, float* scales);

/* One job: ops::MatmulJob. gather and bias may be null. */
typedef struct {
    uint32_t type;
    int64_t rows, cols;
    const void* tiles;
    const void* acts;
    const int32_t* gather;
    int64_t n_tokens;
    float* y;
    int64_t y_stride;
    int64_t tile_begin, tile_end;
    const float* bias;
    int accumulate;
} moepic_test_matmul_job;
/* seconds (may be null) is the shortest of `repeats` runs. cold_bytes > 0: consecutive runs step through copies of the tiles that lie
   tiled bytes apart in `tiles`, cold_bytes in all, so that weights come from memory and not from cache. */
MOEPIC_API int moepic_test_matmul(int isa, const moepic_test_matmul_job* job, int repeats, int64_t cold_bytes, double* seconds);

/* y[n][rows] from GGUF rows and plain floats, one weight after another, with the float operations that ops/cpu/tiles.h promises. */
MOEPIC_API int moepic_test_matmul_reference(uint32_t type, const void* blocks, int64_t rows, int64_t cols, const float* x, int64_t n,
                                            float* y);
/* cdef: end */
