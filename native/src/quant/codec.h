// The decoders and encoders behind the type table, one pair per type (no encoders of the codebook types); private to quant/. Everything
// outside calls them through TypeInfo (types.h), which states their contract.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moepic::codec {

// decode_32.cpp: floats and the types of 32 weights per block
void decode_f32(const std::byte* blocks, float* out, int64_t n);
void decode_f16(const std::byte* blocks, float* out, int64_t n);
void decode_bf16(const std::byte* blocks, float* out, int64_t n);
void decode_q4_0(const std::byte* blocks, float* out, int64_t n);
void decode_q4_1(const std::byte* blocks, float* out, int64_t n);
void decode_q5_0(const std::byte* blocks, float* out, int64_t n);
void decode_q5_1(const std::byte* blocks, float* out, int64_t n);
void decode_q8_0(const std::byte* blocks, float* out, int64_t n);
void decode_iq4_nl(const std::byte* blocks, float* out, int64_t n);
void decode_mxfp4(const std::byte* blocks, float* out, int64_t n);

// decode_256.cpp: k-quants and IQ4_XS
void decode_q2_k(const std::byte* blocks, float* out, int64_t n);
void decode_q3_k(const std::byte* blocks, float* out, int64_t n);
void decode_q4_k(const std::byte* blocks, float* out, int64_t n);
void decode_q5_k(const std::byte* blocks, float* out, int64_t n);
void decode_q6_k(const std::byte* blocks, float* out, int64_t n);
void decode_iq4_xs(const std::byte* blocks, float* out, int64_t n);

// decode_grid.cpp: types with a codebook
void decode_iq2_xxs(const std::byte* blocks, float* out, int64_t n);
void decode_iq2_xs(const std::byte* blocks, float* out, int64_t n);
void decode_iq2_s(const std::byte* blocks, float* out, int64_t n);
void decode_iq3_xxs(const std::byte* blocks, float* out, int64_t n);
void decode_iq3_s(const std::byte* blocks, float* out, int64_t n);

// encode_32.cpp
void encode_f32(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_f16(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_bf16(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_q4_0(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_q4_1(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_q5_0(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_q5_1(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_q8_0(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_iq4_nl(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_mxfp4(const float* in, const float* importance, std::byte* blocks, int64_t n);

// encode_256.cpp
void encode_q2_k(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_q3_k(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_q4_k(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_q5_k(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_q6_k(const float* in, const float* importance, std::byte* blocks, int64_t n);
void encode_iq4_xs(const float* in, const float* importance, std::byte* blocks, int64_t n);

}  // namespace moepic::codec
