// Test-only: the codecs of native/src/quant for pytest, which compares them with gguf's numpy dequantizers.
#pragma once

#include <stdint.h>

#ifndef MOEPIC_API
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#endif

/* cdef: begin */
/* One row of the type table. name is static. has_encoder is 0 or 1. Code argument for an unknown id. */
MOEPIC_API int moepic_test_type_info(uint32_t type, const char** name, uint32_t* block_len, uint32_t* block_bytes, int* has_encoder);

/* The id of a name in any case. */
MOEPIC_API int moepic_test_type_by_name(const char* name, uint32_t* type);

/* Decode n weights to float32. blocks needs no alignment; n is a multiple of the block length. */
MOEPIC_API int moepic_test_decode(uint32_t type, const void* blocks, float* out, int64_t n);

/* Encode n weights; importance is null or n weights of the squared error. */
MOEPIC_API int moepic_test_encode(uint32_t type, const float* in, const float* importance, void* blocks, int64_t n);

/* n conversions. kind 0: f16 to f32, 1: f32 to f16, 2: bf16 to f32, 3: f32 to bf16; from and to are uint16_t or float arrays. */
MOEPIC_API int moepic_test_convert_half(int kind, const void* from, void* to, int64_t n);
/* cdef: end */
