// Plain decoders of the IQ2 and IQ3 types, whose magnitudes come from a codebook. Like decode_256.cpp these are the reference. Every
// product is exact in float32 (11 bits of d, 5 of the scale, 6 of the magnitude), so its order is free.
#include "quant/blocks.h"
#include "quant/codec.h"
#include "quant/grids.h"

namespace moepic::codec {
namespace {

template <class Block, class Body>
void for_each_block(const std::byte* blocks, float* out, int64_t n, Body body) {
    const auto* block = reinterpret_cast<const Block*>(blocks);
    for (int64_t i = 0; i < n; i += Block::len) body(*block++, out + i);
}

inline float with_sign(int magnitude, uint32_t signs, int i) {
    return static_cast<float>((signs >> i) & 1 ? -magnitude : magnitude);
}

// 8 weights of an IQ2 type.
inline void decode_group(float* y, float scale, uint16_t entry, uint32_t signs) {
    for (int i = 0; i < 8; ++i) y[i] = scale * with_sign(iq2_levels[(entry >> (2 * i)) & 3], signs, i);
}

// 8 weights of an IQ3 type: two entries.
inline void decode_pair(float* y, float scale, uint16_t first, uint16_t second, const int8_t (&levels)[8], uint32_t signs) {
    for (int i = 0; i < 4; ++i) {
        y[i] = scale * with_sign(levels[(first >> (4 * i)) & 7], signs, i);
        y[4 + i] = scale * with_sign(levels[(second >> (4 * i)) & 7], signs, 4 + i);
    }
}

// Scale s as an odd integer, 2 scale + 1, from 4-bit scales in order.
inline float odd_scale(const uint8_t* scales, int s) {
    return static_cast<float>(2 * ((scales[s / 2] >> (4 * (s % 2))) & 15) + 1);
}

}  // namespace

void decode_iq2_xxs(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockIQ2_XXS>(blocks, out, n, [](const BlockIQ2_XXS& b, float* y) {
        const float unit = f16_to_f32(b.d) * 0.125f;
        for (const auto& run : b.runs) {
            const float scale = unit * static_cast<float>(2 * (run.signs >> 28) + 1);
            for (int g = 0; g < 4; ++g, y += 8) decode_group(y, scale, iq2_xxs_grid[run.grid[g]], eight_signs(run.signs >> (7 * g)));
        }
    });
}

void decode_iq2_xs(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockIQ2_XS>(blocks, out, n, [](const BlockIQ2_XS& b, float* y) {
        const float unit = f16_to_f32(b.d) * 0.125f;
        for (int g = 0; g < 32; ++g, y += 8)
            decode_group(y, unit * odd_scale(b.scales, g / 2), iq2_xs_grid[b.qs[g] & 511], eight_signs(b.qs[g] >> 9));
    });
}

void decode_iq2_s(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockIQ2_S>(blocks, out, n, [](const BlockIQ2_S& b, float* y) {
        const float unit = f16_to_f32(b.d) * 0.125f;
        for (int g = 0; g < 32; ++g, y += 8) {
            const int index = b.qs[g] | ((b.qh[g / 4] >> (2 * (g % 4))) & 3) << 8;
            decode_group(y, unit * odd_scale(b.scales, g / 2), iq2_s_grid[index], b.signs[g]);
        }
    });
}

void decode_iq3_xxs(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockIQ3_XXS>(blocks, out, n, [](const BlockIQ3_XXS& b, float* y) {
        const float unit = f16_to_f32(b.d) * 0.25f;
        for (int g = 0; g < 32; ++g, y += 8) {
            const uint32_t signs = b.signs[g / 4];
            decode_pair(y, unit * static_cast<float>(2 * (signs >> 28) + 1), iq3_xxs_grid[b.qs[2 * g]], iq3_xxs_grid[b.qs[2 * g + 1]],
                        iq3_xxs_levels, eight_signs(signs >> (7 * (g % 4))));
        }
    });
}

void decode_iq3_s(const std::byte* blocks, float* out, int64_t n) {
    for_each_block<BlockIQ3_S>(blocks, out, n, [](const BlockIQ3_S& b, float* y) {
        const float unit = f16_to_f32(b.d);
        const auto entry = [&](int k) { return iq3_s_grid[b.qs[k] | ((b.qh[k / 8] >> (k % 8)) & 1) << 8]; };
        for (int g = 0; g < 32; ++g, y += 8)
            decode_pair(y, unit * odd_scale(b.scales, g / 4), entry(2 * g), entry(2 * g + 1), iq3_s_levels, b.signs[g]);
    });
}

}  // namespace moepic::codec
