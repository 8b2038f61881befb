// Plain decoders of the types with 256 weights per block: the k-quants and IQ4_XS. Like decode_32.cpp these are the reference:
// d times the sub-block scale is rounded to float32 first, then multiplied by the code, then the minimum is taken away.
#include "quant/blocks.h"
#include "quant/codec.h"

namespace moepic::codec {
namespace {

template <class Block, class Body>
void for_each_block(const std::byte* blocks, float* out, int64_t n, Body body) {
    const auto* block = reinterpret_cast<const Block*>(blocks);
    for (int64_t i = 0; i < n; i += Block::len) body(*block++, out + i);
}

// The two-bit code of weight i in the layout of Q2_K and Q3_K.
inline int two_bits(const uint8_t qs[64], int i) {
    return (qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
}

}  // namespace

void decode_q2_k(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockQ2_K>(blocks, out, n, [](const BlockQ2_K& b, float* y) {
        const float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
        for (int s = 0; s < 16; ++s) {
            const float scale = d * static_cast<float>(b.scales[s] & 15);
            const float min = dmin * static_cast<float>(b.scales[s] >> 4);
            for (int i = 16 * s; i < 16 * s + 16; ++i) y[i] = scale * static_cast<float>(two_bits(b.qs, i)) - min;
        }
    });
}

void decode_q3_k(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockQ3_K>(blocks, out, n, [](const BlockQ3_K& b, float* y) {
        const float d = f16_to_f32(b.d);
        int8_t scales[16];
        unpack_scales_q3_K(b.scales, scales);
        for (int s = 0; s < 16; ++s) {
            const float scale = d * static_cast<float>(scales[s]);
            for (int i = 16 * s; i < 16 * s + 16; ++i) {
                const int high = (b.hmask[i % 32] >> (i / 32)) & 1;
                y[i] = scale * static_cast<float>(two_bits(b.qs, i) + 4 * high - 4);
            }
        }
    });
}

void decode_q4_k(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockQ4_K>(blocks, out, n, [](const BlockQ4_K& b, float* y) {
        const float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
        uint8_t scales[8], mins[8];
        unpack_scales_q4_K(b.scales, scales, mins);
        for (int s = 0; s < 8; ++s) {
            const float scale = d * static_cast<float>(scales[s]);
            const float min = dmin * static_cast<float>(mins[s]);
            const uint8_t* qs = b.qs + s / 2 * 32;
            const int shift = s % 2 * 4;
            for (int i = 0; i < 32; ++i) y[32 * s + i] = scale * static_cast<float>((qs[i] >> shift) & 15) - min;
        }
    });
}

void decode_q5_k(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockQ5_K>(blocks, out, n, [](const BlockQ5_K& b, float* y) {
        const float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
        uint8_t scales[8], mins[8];
        unpack_scales_q4_K(b.scales, scales, mins);
        for (int s = 0; s < 8; ++s) {
            const float scale = d * static_cast<float>(scales[s]);
            const float min = dmin * static_cast<float>(mins[s]);
            const uint8_t* qs = b.qs + s / 2 * 32;
            const int shift = s % 2 * 4;
            for (int i = 0; i < 32; ++i) {
                const int q = ((qs[i] >> shift) & 15) | (((b.qh[i] >> s) & 1) << 4);
                y[32 * s + i] = scale * static_cast<float>(q) - min;
            }
        }
    });
}

void decode_q6_k(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockQ6_K>(blocks, out, n, [](const BlockQ6_K& b, float* y) {
        const float d = f16_to_f32(b.d);
        float scales[16];
        for (int s = 0; s < 16; ++s) scales[s] = d * static_cast<float>(b.scales[s]);
        for (int run = 0; run < 8; ++run) {  // 32 weights: half run / 4, quarter run % 4 of it
            const uint8_t* ql = b.ql + run / 4 * 64 + run % 2 * 32;
            const uint8_t* qh = b.qh + run / 4 * 32;
            const int low_shift = run % 4 / 2 * 4, high_shift = run % 4 * 2;
            for (int i = 0; i < 32; ++i) {
                const int q = ((ql[i] >> low_shift) & 15) | (((qh[i] >> high_shift) & 3) << 4);
                y[32 * run + i] = scales[2 * run + i / 16] * static_cast<float>(q - 32);
            }
        }
    });
}

void decode_iq4_xs(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockIQ4_XS>(blocks, out, n, [](const BlockIQ4_XS& b, float* y) {
        const float d = f16_to_f32(b.d);
        int8_t scales[8];
        unpack_scales_iq4_XS(b.scales_h, b.scales_l, scales);
        for (int s = 0; s < 8; ++s) {
            const float scale = d * static_cast<float>(scales[s]);
            const uint8_t* qs = b.qs + 16 * s;
            for (int i = 0; i < 16; ++i) {
                y[32 * s + i] = scale * static_cast<float>(iq4_nl_values[qs[i] & 15]);
                y[32 * s + i + 16] = scale * static_cast<float>(iq4_nl_values[qs[i] >> 4]);
            }
        }
    });
}

}  // namespace moepic::codec
