// Plain decoders of the float types and of the types with 32 weights per block. They are the reference that faster kernels are
// measured by: every product and sum stands in the order of gguf's dequantizers, so that float32 results are equal bit for bit.
#include <cstring>

#include "quant/blocks.h"
#include "quant/codec.h"

namespace moepic::codec {
namespace {

// Call body(block, out of its `len` weights) for each block of n weights.
template <class Block, class Body>
void for_each_block(const std::byte* blocks, float* out, int64_t n, Body body) {
    const auto* block = reinterpret_cast<const Block*>(blocks);
    for (int64_t i = 0; i < n; i += Block::len) body(*block++, out + i);
}

// Bit 4 of weights i and i + 16, in place above a nibble.
inline int high_bit(const uint8_t qh[4], int i) {
    return ((qh[i / 8] >> (i % 8)) & 1) << 4;
}

}  // namespace

void decode_f32(const std::byte* blocks, float* out, int64_t n) {
    std::memcpy(out, blocks, static_cast<size_t>(n) * sizeof(float));
}

void decode_f16(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockF16>(blocks, out, n, [](const BlockF16& b, float* y) { *y = f16_to_f32(b.x); });
}

void decode_bf16(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockBF16>(blocks, out, n, [](const BlockBF16& b, float* y) { *y = bf16_to_f32(b.x); });
}

void decode_q4_0(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockQ4_0>(blocks, out, n, [](const BlockQ4_0& b, float* y) {
        const float d = f16_to_f32(b.d);
        for (int i = 0; i < 16; ++i) {
            y[i] = d * static_cast<float>((b.qs[i] & 15) - 8);
            y[i + 16] = d * static_cast<float>((b.qs[i] >> 4) - 8);
        }
    });
}

void decode_q4_1(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockQ4_1>(blocks, out, n, [](const BlockQ4_1& b, float* y) {
        const float d = f16_to_f32(b.d), m = f16_to_f32(b.m);
        for (int i = 0; i < 16; ++i) {
            y[i] = d * static_cast<float>(b.qs[i] & 15) + m;
            y[i + 16] = d * static_cast<float>(b.qs[i] >> 4) + m;
        }
    });
}

void decode_q5_0(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockQ5_0>(blocks, out, n, [](const BlockQ5_0& b, float* y) {
        const float d = f16_to_f32(b.d);
        for (int i = 0; i < 16; ++i) {
            y[i] = d * static_cast<float>(((b.qs[i] & 15) | high_bit(b.qh, i)) - 16);
            y[i + 16] = d * static_cast<float>(((b.qs[i] >> 4) | high_bit(b.qh, i + 16)) - 16);
        }
    });
}

void decode_q5_1(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockQ5_1>(blocks, out, n, [](const BlockQ5_1& b, float* y) {
        const float d = f16_to_f32(b.d), m = f16_to_f32(b.m);
        for (int i = 0; i < 16; ++i) {
            y[i] = d * static_cast<float>((b.qs[i] & 15) | high_bit(b.qh, i)) + m;
            y[i + 16] = d * static_cast<float>((b.qs[i] >> 4) | high_bit(b.qh, i + 16)) + m;
        }
    });
}

void decode_q8_0(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockQ8_0>(blocks, out, n, [](const BlockQ8_0& b, float* y) {
        const float d = f16_to_f32(b.d);
        for (int i = 0; i < 32; ++i) y[i] = static_cast<float>(b.qs[i]) * d;
    });
}

void decode_iq4_nl(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockIQ4_NL>(blocks, out, n, [](const BlockIQ4_NL& b, float* y) {
        const float d = f16_to_f32(b.d);
        for (int i = 0; i < 16; ++i) {
            y[i] = d * static_cast<float>(iq4_nl_values[b.qs[i] & 15]);
            y[i + 16] = d * static_cast<float>(iq4_nl_values[b.qs[i] >> 4]);
        }
    });
}

void decode_mxfp4(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockMXFP4>(blocks, out, n, [](const BlockMXFP4& b, float* y) {
        const float d = e8m0_to_f32_half(b.e);
        for (int i = 0; i < 16; ++i) {
            y[i] = d * static_cast<float>(mxfp4_values[b.qs[i] & 15]);
            y[i + 16] = d * static_cast<float>(mxfp4_values[b.qs[i] >> 4]);
        }
    });
}

}  // namespace moepic::codec
