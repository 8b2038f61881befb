// Encoders of the float types and of the types with 32 weights per block. fit.h has the method; here are the starts each type scans
// and the packing. The lists were chosen by error and speed: hundreds of starts instead would lower RMSE by 0.1 to 3 % more.
#include <cstring>

#include "quant/blocks.h"
#include "quant/codec.h"
#include "quant/fit.h"

namespace moepic::codec {
namespace {

// Call body(x, w, block) for each block of n weights, with x and w as load() leaves them.
template <class Block, class Body>
void encode_blocks(const float* in, const float* importance, std::byte* blocks, int64_t n, float largest, Body body) {
    auto* block = reinterpret_cast<Block*>(blocks);
    for (int64_t i = 0; i < n; i += Block::len) {
        alignas(64) float x[Block::len], w[Block::len];
        load(in + i, importance == nullptr ? nullptr : importance + i, largest, x, w);
        body(x, w, *block++);
    }
}

// Weight i in the low, i + 16 in the high nibble.
void pack_nibbles(const uint8_t code[32], uint8_t qs[16]) {
    for (int i = 0; i < 16; ++i) qs[i] = static_cast<uint8_t>((code[i] & 15) | (code[i + 16] << 4));
}

// Bit 4 of every code.
void pack_fifth_bits(const uint8_t code[32], uint8_t qh[4]) {
    for (int i = 0; i < 4; ++i) qh[i] = 0;
    for (int i = 0; i < 32; ++i) qh[i / 8] = static_cast<uint8_t>(qh[i / 8] | ((code[i] >> 4) << (i % 8)));
}

// Fit, round the scale to binary16, and choose the codes again for the scale that will be read. Fills code, returns d.
template <class Levels, size_t K>
uint16_t encode_scaled(const float (&x)[32], const float (&w)[32], const std::array<float, K>& targets, uint8_t code[32]) {
    const uint16_t d = scale_to_f16(fit_scale<Levels, 32>(x, w, targets).d);
    float level[32];
    choose_levels<Levels, 32>(x, w, f16_to_f32(d), level);
    for (int i = 0; i < 32; ++i) code[i] = static_cast<uint8_t>(Levels::code(level[i]));
    return d;
}

// As encode_scaled, for x = d q + m.
template <int Top, size_t K>
void encode_affine(const float (&x)[32], const float (&w)[32], const Cut (&cuts)[K], uint16_t& d, uint16_t& m, uint8_t code[32]) {
    const AffineFit fit = fit_affine<Top, 32>(x, w, false, cuts);
    d = scale_to_f16(fit.a);
    m = f32_to_f16(clamp(-fit.b, -65504.0f, 65504.0f));
    float level[32];
    choose_affine<Top, 32>(x, w, f16_to_f32(d), -f16_to_f32(m), level);
    for (int i = 0; i < 32; ++i) code[i] = static_cast<uint8_t>(level[i]);
}

// Q8_0 keeps to -127..127, as every writer does: kernels may negate a code.
using Levels8 = Integers<-127, 127>;
constexpr auto targets_q8_0 = spread<16>(120.0f, 127.45f);

// The range is lopsided, so the peak is sent to either end.
using Levels4 = Integers<-8, 7>;
constexpr auto targets_q4_0 = both_ends(spread<8>(-9.6f, -7.2f), spread<7>(6.8f, 8.6f));

using Levels5 = Integers<-16, 15>;
constexpr auto targets_q5_0 = both_ends(spread<9>(-18.4f, -15.0f), spread<8>(14.4f, 17.2f));

constexpr Table iq4_nl_table(iq4_nl_values);
using LevelsIq4Nl = Tabulated<iq4_nl_table>;
constexpr auto targets_iq4_nl = both_ends(spread<8>(-148.0f, -113.0f), spread<8>(134.0f, 99.0f));

// E2M1, doubled, ascending; a sign bit and three bits of magnitude make the code.
constexpr int8_t mxfp4_ascending[16] = {-12, -8, -6, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4, 6, 8, 12};
constexpr Table mxfp4_table(mxfp4_ascending);
using LevelsMxfp4 = Tabulated<mxfp4_table>;

// The scale is a power of two, so there is nothing to solve for: a few exponents are tried. OCP MX v1.0 (6.3) takes
// e = floor(log2 max) - 2, which clips peaks above 6/8 of the next power; the next exponent may have less error, and with
// importance even one that clips more. 252 is the last whose largest level, 6 * 2^125, is a float32. Errors are measured in
// units of each trial's own scale, so no square over- or underflows.
void encode_block_mxfp4(const float (&x)[32], const float (&w)[32], BlockMXFP4& b) {
    const float peak = std::fabs(signed_peak<32>(x));
    if (peak == 0.0f) {
        std::memset(&b, 0, sizeof b);
        return;
    }
    const int middle = std::ilogb(peak) - 2 + 127;
    float least = std::numeric_limits<float>::max(), best[32] = {};
    for (int e = std::max(middle - 2, 0); e <= std::clamp(middle + 1, 0, 252); ++e) {
        const double per_half_scale = std::ldexp(1.0, 128 - e);
        const float relative = std::ldexp(1.0f, 2 * (e - middle));  // of the units' squares
        float scaled[32], level[32];
        for (int i = 0; i < 32; ++i) scaled[i] = static_cast<float>(x[i] * per_half_scale);
        const float error = relative * choose_levels<LevelsMxfp4, 32>(scaled, w, 1.0f, level);
        if (!(error < least)) continue;
        least = error;
        b.e = static_cast<uint8_t>(e);
        std::memcpy(best, level, sizeof level);
    }
    uint8_t code[32];
    for (int i = 0; i < 32; ++i) {
        const int magnitude = std::max(LevelsMxfp4::code(std::fabs(best[i])) - 8, 0);
        code[i] = static_cast<uint8_t>(magnitude | (best[i] < 0.0f ? 8 : 0));
    }
    pack_nibbles(code, b.qs);
}

}  // namespace

void encode_f32(const float* in, const float*, std::byte* blocks, int64_t n) {
    std::memcpy(blocks, in, static_cast<size_t>(n) * sizeof(float));
}

void encode_f16(const float* in, const float*, std::byte* blocks, int64_t n) {
    auto* block = reinterpret_cast<BlockF16*>(blocks);
    for (int64_t i = 0; i < n; ++i) block[i].x = f32_to_f16(in[i]);
}

void encode_bf16(const float* in, const float*, std::byte* blocks, int64_t n) {
    auto* block = reinterpret_cast<BlockBF16*>(blocks);
    for (int64_t i = 0; i < n; ++i) block[i].x = f32_to_bf16(in[i]);
}

MOEPIC_WIDE void encode_q4_0(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    encode_blocks<BlockQ4_0>(in, importance, blocks, n, kLargest, [](const auto& x, const auto& w, BlockQ4_0& b) {
        uint8_t code[32];
        b.d = encode_scaled<Levels4>(x, w, targets_q4_0, code);
        pack_nibbles(code, b.qs);
    });
}

MOEPIC_WIDE void encode_q4_1(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    encode_blocks<BlockQ4_1>(in, importance, blocks, n, kLargest, [](const auto& x, const auto& w, BlockQ4_1& b) {
        uint8_t code[32];
        uint16_t d, m;
        encode_affine<15>(x, w, cuts_of_range, d, m, code);
        b.d = d;
        b.m = m;
        pack_nibbles(code, b.qs);
    });
}

MOEPIC_WIDE void encode_q5_0(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    encode_blocks<BlockQ5_0>(in, importance, blocks, n, kLargest, [](const auto& x, const auto& w, BlockQ5_0& b) {
        uint8_t code[32];
        b.d = encode_scaled<Levels5>(x, w, targets_q5_0, code);
        pack_nibbles(code, b.qs);
        pack_fifth_bits(code, b.qh);
    });
}

MOEPIC_WIDE void encode_q5_1(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    encode_blocks<BlockQ5_1>(in, importance, blocks, n, kLargest, [](const auto& x, const auto& w, BlockQ5_1& b) {
        uint8_t code[32];
        uint16_t d, m;
        encode_affine<31>(x, w, cuts_of_range, d, m, code);
        b.d = d;
        b.m = m;
        pack_nibbles(code, b.qs);
        pack_fifth_bits(code, b.qh);
    });
}

MOEPIC_WIDE void encode_q8_0(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    encode_blocks<BlockQ8_0>(in, importance, blocks, n, kLargest, [](const auto& x, const auto& w, BlockQ8_0& b) {
        b.d = scale_to_f16(std::fabs(fit_scale<Levels8, 32>(x, w, targets_q8_0).d));
        float level[32];
        choose_levels<Levels8, 32>(x, w, f16_to_f32(b.d), level);
        for (int i = 0; i < 32; ++i) b.qs[i] = static_cast<int8_t>(level[i]);
    });
}

MOEPIC_WIDE void encode_iq4_nl(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    encode_blocks<BlockIQ4_NL>(in, importance, blocks, n, kLargest, [](const auto& x, const auto& w, BlockIQ4_NL& b) {
        uint8_t code[32];
        b.d = encode_scaled<LevelsIq4Nl>(x, w, targets_iq4_nl, code);
        pack_nibbles(code, b.qs);
    });
}

MOEPIC_WIDE void encode_mxfp4(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    encode_blocks<BlockMXFP4>(in, importance, blocks, n, std::numeric_limits<float>::max(),
                              [](const auto& x, const auto& w, BlockMXFP4& b) { encode_block_mxfp4(x, w, b); });
}

}  // namespace moepic::codec
