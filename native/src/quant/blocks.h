// The bytes of every block type, as packed structs with GGUF's letters. This is the one source of sizes: the type table, the
// kernels and the writer derive theirs from sizeof and `len`. Also the small facts every decoder of a format shares: the two
// non-linear value tables and the packing of the sub-block scales. Knows no loops over tensors.
//
// Letters: d scale, dmin or m minimum, scales sub-block scales, qs low bits of the codes, qh (hmask) the high bits, e exponent.
// A nibble pair holds weight i in the low and weight i + half in the high bits, where half is 16 in the 32-weight types and 32 in
// the k-quants; this is drawn at each struct. Layouts: ggml's formats as read by gguf-py 0.17 and later.
//
// The structs have alignment 1 and may alias, so a pointer to any byte of a tensor can be read as a block.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "quant/half.h"

namespace moepic {

struct [[gnu::packed, gnu::may_alias]] BlockF32 {
    static constexpr int len = 1;
    float x;
};
static_assert(sizeof(BlockF32) == 4);

struct [[gnu::packed, gnu::may_alias]] BlockF16 {
    static constexpr int len = 1;
    uint16_t x;
};
static_assert(sizeof(BlockF16) == 2);

struct [[gnu::packed, gnu::may_alias]] BlockBF16 {
    static constexpr int len = 1;
    uint16_t x;
};
static_assert(sizeof(BlockBF16) == 2);

// ---- 32 weights: one scale, perhaps one minimum. Weight i is in the low nibble of qs[i], weight i + 16 in its high nibble. ----

// x = d (q - 8)
struct [[gnu::packed, gnu::may_alias]] BlockQ4_0 {
    static constexpr int len = 32;
    uint16_t d;  // f16
    uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_0) == 18);

// x = d q + m
struct [[gnu::packed, gnu::may_alias]] BlockQ4_1 {
    static constexpr int len = 32;
    uint16_t d, m;  // f16
    uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_1) == 20);

// x = d (q - 16); bit i of the little-endian qh is bit 4 of weight i
struct [[gnu::packed, gnu::may_alias]] BlockQ5_0 {
    static constexpr int len = 32;
    uint16_t d;  // f16
    uint8_t qh[4];
    uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_0) == 22);

// x = d q + m; qh as in Q5_0
struct [[gnu::packed, gnu::may_alias]] BlockQ5_1 {
    static constexpr int len = 32;
    uint16_t d, m;  // f16
    uint8_t qh[4];
    uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_1) == 24);

// x = d q
struct [[gnu::packed, gnu::may_alias]] BlockQ8_0 {
    static constexpr int len = 32;
    uint16_t d;  // f16
    int8_t qs[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

// x = d iq4_nl_values[q]
struct [[gnu::packed, gnu::may_alias]] BlockIQ4_NL {
    static constexpr int len = 32;
    uint16_t d;  // f16
    uint8_t qs[16];
};
static_assert(sizeof(BlockIQ4_NL) == 18);

// x = e8m0_to_f32_half(e) mxfp4_values[q] (OCP Microscaling Formats v1.0: E2M1 elements, one E8M0 scale)
struct [[gnu::packed, gnu::may_alias]] BlockMXFP4 {
    static constexpr int len = 32;
    uint8_t e;
    uint8_t qs[16];
};
static_assert(sizeof(BlockMXFP4) == 17);

// ---- 256 weights (k-quants and IQ4_XS): sub-blocks of 16 or 32 weights with integer scales under one d (and dmin). ----

// 16 sub-blocks s of 16: x = (d * low nibble of scales[s]) q - (dmin * high nibble of scales[s]).
// qs: two halves of 32 bytes for 128 weights each; the bit pairs 0, 2, 4, 6 of byte i hold weights i, i + 32, i + 64, i + 96.
struct [[gnu::packed, gnu::may_alias]] BlockQ2_K {
    static constexpr int len = 256;
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d, dmin;  // f16
};
static_assert(sizeof(BlockQ2_K) == 84);

// 16 sub-blocks of 16: x = (d (scale - 32)) (q - 4), q in 0..7. qs as in Q2_K holds the low two bits; bit b of hmask[i] is the high
// bit of weight 32 b + i. scales: see unpack_scales_q3_K.
struct [[gnu::packed, gnu::may_alias]] BlockQ3_K {
    static constexpr int len = 256;
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;  // f16
};
static_assert(sizeof(BlockQ3_K) == 110);

// 8 sub-blocks of 32: x = (d scale) q - (dmin min). qs: four runs of 32 bytes for 64 weights each, weight i low, i + 32 high.
// scales: see unpack_scales_q4_K.
struct [[gnu::packed, gnu::may_alias]] BlockQ4_K {
    static constexpr int len = 256;
    uint16_t d, dmin;  // f16
    uint8_t scales[12];
    uint8_t qs[128];
};
static_assert(sizeof(BlockQ4_K) == 144);

// As Q4_K, with bit b of qh[i] the fifth bit of weight 32 b + i.
struct [[gnu::packed, gnu::may_alias]] BlockQ5_K {
    static constexpr int len = 256;
    uint16_t d, dmin;  // f16
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
static_assert(sizeof(BlockQ5_K) == 176);

// 16 sub-blocks of 16: x = (d scales[s]) (q - 32), q in 0..63. Two halves of 128 weights; in each, ql[i] has weight i low and i + 64
// high for i in 0..63, and the bit pairs 0, 2, 4, 6 of qh[i] hold the top bits of weights i, i + 32, i + 64, i + 96.
struct [[gnu::packed, gnu::may_alias]] BlockQ6_K {
    static constexpr int len = 256;
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;  // f16
};
static_assert(sizeof(BlockQ6_K) == 210);

// 8 sub-blocks of 32: x = (d (scale - 32)) iq4_nl_values[q]. Each sub-block has 16 bytes of qs, weight i low, i + 16 high.
// The low 4 bits of scale s are nibble s of scales_l, the top 2 are bit pair s of scales_h.
struct [[gnu::packed, gnu::may_alias]] BlockIQ4_XS {
    static constexpr int len = 256;
    uint16_t d;  // f16
    uint16_t scales_h;
    uint8_t scales_l[4];
    uint8_t qs[128];
};
static_assert(sizeof(BlockIQ4_XS) == 136);

// ---- 256 weights, magnitudes from a codebook (grids.h): an index chooses the magnitudes of 8 (IQ2) or 4 (IQ3) weights, signs are apart.
// Every type has runs r of 32 weights, each with 4 groups g of 8. A bit that is set is a minus. Where only 7 sign bits of a group are
// stored, the minuses are even in number, which gives the eighth (see eight_signs). ----

// 8 sub-blocks, the runs: x = (d (scale + 0.5) / 4) magnitude. Bits 7g .. 7g + 6 of signs are the signs of group g, bits 28..31 the scale.
struct [[gnu::packed, gnu::may_alias]] BlockIQ2_XXS {
    static constexpr int len = 256;
    struct [[gnu::packed]] Run {
        uint8_t grid[4];  // entry of iq2_xxs_grid of each group
        uint32_t signs;
    };
    uint16_t d;  // f16
    Run runs[8];
};
static_assert(sizeof(BlockIQ2_XXS) == 66);

// 16 sub-blocks of 16, scale s is nibble s of scales: x = (d (scale + 0.5) / 4) magnitude. qs[4r + g]: 9 bits of index into iq2_xs_grid,
// then 7 signs.
struct [[gnu::packed, gnu::may_alias]] BlockIQ2_XS {
    static constexpr int len = 256;
    uint16_t d;  // f16
    uint16_t qs[32];
    uint8_t scales[8];
};
static_assert(sizeof(BlockIQ2_XS) == 74);

// As IQ2_XS, with all 8 signs of a group in signs[4r + g] and an index of 10 bits into iq2_s_grid: qs[4r + g], then bit pair g of qh[r].
struct [[gnu::packed, gnu::may_alias]] BlockIQ2_S {
    static constexpr int len = 256;
    uint16_t d;  // f16
    uint8_t qs[32];
    uint8_t signs[32];
    uint8_t qh[8];
    uint8_t scales[8];
};
static_assert(sizeof(BlockIQ2_S) == 82);

// 8 sub-blocks, the runs: x = (d (scale + 0.5) / 2) magnitude. qs[8r + k]: entry of iq3_xxs_grid of weights 4k .. 4k + 3 of the run.
// signs as in IQ2_XXS.
struct [[gnu::packed, gnu::may_alias]] BlockIQ3_XXS {
    static constexpr int len = 256;
    uint16_t d;  // f16
    uint8_t qs[64];
    uint32_t signs[8];
};
static_assert(sizeof(BlockIQ3_XXS) == 98);

// 8 sub-blocks, the runs, scale r is nibble r of scales: x = (d (2 scale + 1)) magnitude. An index has 9 bits into iq3_s_grid: qs[8r + k],
// then bit k of qh[r]. signs as in IQ2_S.
struct [[gnu::packed, gnu::may_alias]] BlockIQ3_S {
    static constexpr int len = 256;
    uint16_t d;  // f16
    uint8_t qs[64];
    uint8_t qh[8];
    uint8_t signs[32];
    uint8_t scales[4];
};
static_assert(sizeof(BlockIQ3_S) == 110);

// Codes of IQ4_NL and IQ4_XS.
inline constexpr int8_t iq4_nl_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Codes of MXFP4: E2M1 (0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives), doubled.
inline constexpr int8_t mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// The 12 scale bytes of Q4_K and Q5_K hold eight 6-bit scales and eight 6-bit minimums:
//   byte i     (i < 4)  [ top 2 bits of scale 4+i | scale i ]
//   byte 4 + i          [ top 2 bits of min 4+i   | min i   ]
//   byte 8 + i          [ low 4 bits of min 4+i   | low 4 bits of scale 4+i ]
inline void unpack_scales_q4_K(const uint8_t packed[12], uint8_t scales[8], uint8_t mins[8]) noexcept {
    for (int i = 0; i < 4; ++i) {
        const uint8_t s = packed[i], m = packed[4 + i], low = packed[8 + i];
        scales[i] = s & 63;
        mins[i] = m & 63;
        scales[4 + i] = static_cast<uint8_t>((low & 15) | ((s >> 6) << 4));
        mins[4 + i] = static_cast<uint8_t>((low >> 4) | ((m >> 6) << 4));
    }
}

inline void pack_scales_q4_K(const uint8_t scales[8], const uint8_t mins[8], uint8_t packed[12]) noexcept {
    for (int i = 0; i < 4; ++i) {
        packed[i] = static_cast<uint8_t>(scales[i] | ((scales[4 + i] >> 4) << 6));
        packed[4 + i] = static_cast<uint8_t>(mins[i] | ((mins[4 + i] >> 4) << 6));
        packed[8 + i] = static_cast<uint8_t>((scales[4 + i] & 15) | ((mins[4 + i] & 15) << 4));
    }
}

// The 12 scale bytes of Q3_K hold sixteen 6-bit scales with an offset of 32: nibbles 0..15 of the first eight bytes (all low
// nibbles first) are the low bits of scales 0..15; bit pair j of byte 8 + i is the top of scale 4 j + i.
inline void unpack_scales_q3_K(const uint8_t packed[12], int8_t scales[16]) noexcept {
    for (int s = 0; s < 16; ++s) {
        const int low = (packed[s % 8] >> (4 * (s / 8))) & 15;
        const int high = (packed[8 + s % 4] >> (2 * (s / 4))) & 3;
        scales[s] = static_cast<int8_t>((low | (high << 4)) - 32);
    }
}

inline void pack_scales_q3_K(const int8_t scales[16], uint8_t packed[12]) noexcept {
    for (int i = 0; i < 12; ++i) packed[i] = 0;
    for (int s = 0; s < 16; ++s) {
        const int v = scales[s] + 32;
        packed[s % 8] = static_cast<uint8_t>(packed[s % 8] | ((v & 15) << (4 * (s / 8))));
        packed[8 + s % 4] = static_cast<uint8_t>(packed[8 + s % 4] | ((v >> 4) << (2 * (s / 4))));
    }
}

// The signs of 8 weights from the 7 that are stored: the last makes the number of minuses even.
inline uint8_t eight_signs(uint32_t seven) noexcept {
    const uint32_t low = seven & 127;
    return static_cast<uint8_t>(low | static_cast<uint32_t>(std::popcount(low) & 1) << 7);
}

// Scales of IQ4_XS without their offset of 32: -32..31.
inline void unpack_scales_iq4_XS(uint16_t scales_h, const uint8_t scales_l[4], int8_t scales[8]) noexcept {
    for (int s = 0; s < 8; ++s) {
        const int low = (scales_l[s / 2] >> (4 * (s % 2))) & 15;
        const int high = (scales_h >> (2 * s)) & 3;
        scales[s] = static_cast<int8_t>((low | (high << 4)) - 32);
    }
}

}  // namespace moepic
