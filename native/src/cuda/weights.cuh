// Tiles of weights (ops/cpu/tiles.h) as operands of an int8 tensor core product. A tile was made for lanes that are rows; it also is, as it
// lies in memory, the operand A of mma.m16n8k32 (simt.h): a dword column holds 4 consecutive k of 16 rows, and 8 of them are one run of 32.
// With lane = 4 g + c, the lane takes dwords c and c + 4 of a run for rows 2g and 2g + 1 (which row is which of the product's 16 does not
// matter, so two neighbours make one load of 8 bytes; a warp's load is 4 whole columns, 256 consecutive bytes):
//
//   a[0] row 2g, dword c    a[1] row 2g + 1, dword c    a[2] row 2g, dword c + 4    a[3] row 2g + 1, dword c + 4
//
// Codes leave here signed, so nothing has to be corrected after the product. A type T has
//
//   kLen, kBody, kEnds, kTerms   weights and bytes of a block of 16 rows; float terms that a block adds (product.cuh)
//   kFewAhead                    blocks that a warp has on their way with few tokens
//   Raw                          what a lane loads of a block, as it lies in memory
//   load(body, ends, lane)       body, ends: the block in its tile
//   code(raw, run, i, lane)      a[i] of run `run`
//   d(raw, i)                    scale of row 2g + i; min(raw, i): dmin or m, where T::kMin
// and where kLen is 256
//   kSubs                        8 or 16 sub-blocks under integer scales
//   scales(raw, i, words)        signed bytes: byte s % 4 of words[s / 4] is the scale of sub-block s in row 2g + i
//   mins(raw, i, lane)           where kMin: the minimums of sub-blocks 4c .. 4c + 3; 0 beyond the last
#pragma once

#include "cuda/math.cuh"
#include "cuda/simt.h"
#include "ops/cpu/tiles.h"

namespace moepic::device {

// The calling lane of a warp: rows 2g and 2g + 1, dwords c and c + 4.
struct Lane {
    int g, c;
};
__device__ inline Lane this_lane() {
    const int lane = static_cast<int>(threadIdx.x % 32);
    return {lane / 4, lane % 4};
}

// Dword column i of a block, two rows of it.
__device__ inline uint2 column(const std::byte* body, int i, Lane lane) {
    return __ldg(reinterpret_cast<const uint2*>(body + i * ops::kColumn) + lane.g);
}
// 16-bit end i: the value of row 2g in the low half, of row 2g + 1 in the high half.
__device__ inline uint32_t end_pair(const std::byte* ends, int i, Lane lane) {
    return __ldg(reinterpret_cast<const uint32_t*>(ends + i * 2 * ops::kTileRows) + lane.g);
}
__device__ inline float half_of(uint32_t pair, int i) {
    return f_half(static_cast<uint16_t>(pair >> (16 * i)));
}

// Each byte of q less `offset`, as signed bytes: q + 128 - offset stays below 256, and flipping the top bit takes 128 away.
template <int offset>
__device__ inline uint32_t less(uint32_t q) {
    return (q + (128u - offset) * 0x01010101u) ^ 0x80808080u;
}

// Four bytes of a table as a dword, for lookups by __byte_perm.
__host__ __device__ constexpr uint32_t quad(const int8_t (&values)[16], int i) {
    return (static_cast<uint32_t>(values[4 * i]) & 255u) | (static_cast<uint32_t>(values[4 * i + 1]) & 255u) << 8 |
           (static_cast<uint32_t>(values[4 * i + 2]) & 255u) << 16 | (static_cast<uint32_t>(values[4 * i + 3]) & 255u) << 24;
}
// The values of four nibbles: bits 0..2 of each choose among eight, bit 3 between the eights.
template <uint32_t t0, uint32_t t1, uint32_t t2, uint32_t t3>
__device__ inline uint32_t look_up_four(uint32_t nibbles) {
    const uint32_t low = __byte_perm(t0, t1, nibbles & 0x7777u), high = __byte_perm(t2, t3, nibbles & 0x7777u);
    return __byte_perm(low, high, 0x3210u | (nibbles & 0x8888u) >> 1);
}
// The values of the low (part 0) or high (part 1) nibbles of a dword.
template <uint32_t t0, uint32_t t1, uint32_t t2, uint32_t t3>
__device__ inline uint32_t look_up(uint32_t dword, int part) {
    const uint32_t a = look_up_four<t0, t1, t2, t3>(dword), b = look_up_four<t0, t1, t2, t3>(dword >> 16);
    return __byte_perm(a, b, part == 0 ? 0x6420u : 0x7531u);
}
__device__ inline uint32_t look_up_iq4(uint32_t dword, int part) {
    constexpr uint32_t t0 = quad(iq4_nl_values, 0), t1 = quad(iq4_nl_values, 1), t2 = quad(iq4_nl_values, 2), t3 = quad(iq4_nl_values, 3);
    return look_up<t0, t1, t2, t3>(dword, part);
}
__device__ inline uint32_t look_up_mxfp4(uint32_t dword, int part) {
    constexpr uint32_t t0 = quad(mxfp4_values, 0), t1 = quad(mxfp4_values, 1), t2 = quad(mxfp4_values, 2), t3 = quad(mxfp4_values, 3);
    return look_up<t0, t1, t2, t3>(dword, part);
}

// ---- 32 weights per block: low nibbles are dwords 0..3, high nibbles dwords 4..7 ------------------------------------------------------

// Where there is a fifth bit, its column stands before the nibbles. Q8_0 has bytes instead. halves: 16-bit ends.
template <ops::TileShape shape, bool has_fifth, bool bytes, int halves>
struct Block32 {
    static constexpr int kLen = 32, kBody = shape.body, kEnds = shape.ends, kTerms = halves == 2 ? 2 : 1, kFewAhead = 8;
    static constexpr bool kMin = halves == 2;
    struct Raw {
        uint32_t fifth[2], q[bytes ? 4 : 2], d, m;
    };
    __device__ static Raw load(const std::byte* body, const std::byte* ends, Lane lane) {
        Raw raw{};
        if constexpr (has_fifth) {
            const uint2 bits = column(body, 0, lane);
            raw.fifth[0] = bits.x, raw.fifth[1] = bits.y;
        }
        constexpr int first = has_fifth ? 1 : 0;
        const uint2 low = column(body, first + lane.c, lane);
        raw.q[0] = low.x, raw.q[1] = low.y;
        if constexpr (bytes) {
            const uint2 high = column(body, first + lane.c + 4, lane);
            raw.q[2] = high.x, raw.q[3] = high.y;
        }
        if constexpr (halves > 0) raw.d = end_pair(ends, 0, lane);
        if constexpr (halves > 1) raw.m = end_pair(ends, 1, lane);
        return raw;
    }
    __device__ static float d(const Raw& raw, int i) { return half_of(raw.d, i); }
    __device__ static float min(const Raw& raw, int i) { return half_of(raw.m, i); }

protected:
    __device__ static uint32_t nibbles(const Raw& raw, int i) { return (raw.q[i % 2] >> (i / 2 * 4)) & 0x0f0f0f0fu; }
    // With the fifth bit from qh' (tiles.h): bit 8i + j belongs to byte i of dword j.
    __device__ static uint32_t five_bits(const Raw& raw, int i, Lane lane) {
        return nibbles(raw, i) | (((raw.fifth[i % 2] >> (lane.c + i / 2 * 4)) & 0x01010101u) << 4);
    }
};

struct Q4_0 : Block32<ops::kTileQ4_0, false, false, 1> {
    __device__ static uint32_t code(const Raw& raw, int, int i, Lane) { return less<8>(nibbles(raw, i)); }
};
struct Q4_1 : Block32<ops::kTileQ4_1, false, false, 2> {
    __device__ static uint32_t code(const Raw& raw, int, int i, Lane) { return nibbles(raw, i); }
};
struct Q5_0 : Block32<ops::kTileQ5_0, true, false, 1> {
    __device__ static uint32_t code(const Raw& raw, int, int i, Lane lane) { return less<16>(five_bits(raw, i, lane)); }
};
struct Q5_1 : Block32<ops::kTileQ5_1, true, false, 2> {
    __device__ static uint32_t code(const Raw& raw, int, int i, Lane lane) { return five_bits(raw, i, lane); }
};
struct Q8_0 : Block32<ops::kTileQ8_0, false, true, 1> {
    __device__ static uint32_t code(const Raw& raw, int, int i, Lane) { return raw.q[i] ^ 0x80808080u; }
};
struct IQ4_NL : Block32<ops::kTileIQ4_NL, false, false, 1> {
    __device__ static uint32_t code(const Raw& raw, int, int i, Lane) { return look_up_iq4(raw.q[i % 2], i / 2); }
};
struct MXFP4 : Block32<ops::kTileMXFP4, false, false, 0> {
    __device__ static Raw load(const std::byte* body, const std::byte* ends, Lane lane) {
        Raw raw = Block32::load(body, ends, lane);
        raw.d = __ldg(reinterpret_cast<const uint16_t*>(ends) + lane.g);
        return raw;
    }
    __device__ static uint32_t code(const Raw& raw, int, int i, Lane) { return look_up_mxfp4(raw.q[i % 2], i / 2); }
    // 2^(e - 128) as a product of two normal floats: e = 0 and 1 come out as the subnormals they are.
    __device__ static float d(const Raw& raw, int i) {
        const uint32_t e = (raw.d >> (8 * i)) & 255u, half = e >> 1;
        return f_bits((half + 64u) << 23) * f_bits((e - half + 62u) << 23);
    }
};

// ---- 256 weights per block ------------------------------------------------------------------------------------------------------------

// heads columns of scales, then fields of 8 columns (one byte per weight of 32), of which a lane takes two.
template <ops::TileShape shape, int heads, int fields, int subs, bool has_min, bool has_high>
struct Block256 {
    static constexpr int kLen = 256, kBody = shape.body, kEnds = shape.ends, kTerms = has_min ? 2 : 1, kSubs = subs, kFewAhead = 2;
    static constexpr bool kMin = has_min;
    static_assert(kBody == (heads + 8 * fields) * ops::kColumn);
    struct Raw {
        uint32_t head[heads][2], field[fields][4], d, second;  // second: dmin, or the high bits of IQ4_XS's scales
    };
    __device__ static Raw load(const std::byte* body, const std::byte* ends, Lane lane) {
        Raw raw{};
#pragma unroll
        for (int i = 0; i < fields; ++i) {
            const uint2 low = column(body, heads + 8 * i + lane.c, lane), high = column(body, heads + 8 * i + lane.c + 4, lane);
            raw.field[i][0] = low.x, raw.field[i][1] = low.y, raw.field[i][2] = high.x, raw.field[i][3] = high.y;
        }
#pragma unroll
        for (int i = 0; i < heads; ++i) {
            const uint2 both = column(body, i, lane);
            raw.head[i][0] = both.x, raw.head[i][1] = both.y;
        }
        raw.d = end_pair(ends, 0, lane);
        if constexpr (has_min || has_high) raw.second = end_pair(ends, 1, lane);
        return raw;
    }
    __device__ static float d(const Raw& raw, int i) { return half_of(raw.d, i); }
    __device__ static float min(const Raw& raw, int i) { return half_of(raw.second, i); }
};

struct Q2_K : Block256<ops::kTileQ2_K, 4, 2, 16, true, false> {
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane) { return (raw.field[run / 4][i] >> (run % 4 * 2)) & 0x03030303u; }
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[4]) {
#pragma unroll
        for (int j = 0; j < 4; ++j) words[j] = raw.head[j][i] & 0x0f0f0f0fu;
    }
    __device__ static uint32_t mins(const Raw& raw, int i, Lane lane) {
        const uint32_t low = lane.c % 2 == 0 ? raw.head[0][i] : raw.head[1][i], high = lane.c % 2 == 0 ? raw.head[2][i] : raw.head[3][i];
        return ((lane.c < 2 ? low : high) >> 4) & 0x0f0f0f0fu;
    }
};

struct Q3_K : Block256<ops::kTileQ3_K, 3, 3, 16, false, false> {
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane) {
        const uint32_t high = ((raw.field[0][i] >> run) & 0x01010101u) << 2;
        return less<4>(((raw.field[1 + run / 4][i] >> (run % 4 * 2)) & 0x03030303u) | high);
    }
    // The 12 bytes of unpack_scales_q3_K (quant/blocks.h) as three dwords per row.
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[4]) {
        const uint32_t a = raw.head[0][i], b = raw.head[1][i], c = raw.head[2][i];
        words[0] = less<32>((a & 0x0f0f0f0fu) | ((c << 4) & 0x30303030u));
        words[1] = less<32>((b & 0x0f0f0f0fu) | ((c << 2) & 0x30303030u));
        words[2] = less<32>(((a >> 4) & 0x0f0f0f0fu) | (c & 0x30303030u));
        words[3] = less<32>(((b >> 4) & 0x0f0f0f0fu) | ((c >> 2) & 0x30303030u));
    }
};

// Q4_K and Q5_K pack their scales alike: the 12 bytes of unpack_scales_q4_K (quant/blocks.h) as three dwords per row.
template <ops::TileShape shape, int fields>
struct SixBitScales : Block256<shape, 3, fields, 8, true, false> {
    using Raw = typename Block256<shape, 3, fields, 8, true, false>::Raw;
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[2]) {
        words[0] = raw.head[0][i] & 0x3f3f3f3fu;
        words[1] = (raw.head[2][i] & 0x0f0f0f0fu) | ((raw.head[0][i] >> 2) & 0x30303030u);
    }
    __device__ static uint32_t mins(const Raw& raw, int i, Lane lane) {
        const uint32_t first = raw.head[1][i] & 0x3f3f3f3fu;
        const uint32_t second = ((raw.head[2][i] >> 4) & 0x0f0f0f0fu) | ((raw.head[1][i] >> 2) & 0x30303030u);
        return lane.c == 0 ? first : lane.c == 1 ? second : 0u;
    }
};

struct Q4_K : SixBitScales<ops::kTileQ4_K, 4> {
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane) { return (raw.field[run / 2][i] >> (run % 2 * 4)) & 0x0f0f0f0fu; }
};
struct Q5_K : SixBitScales<ops::kTileQ5_K, 5> {
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane) {
        const uint32_t high = ((raw.field[0][i] >> run) & 0x01010101u) << 4;
        return ((raw.field[1 + run / 2][i] >> (run % 2 * 4)) & 0x0f0f0f0fu) | high;
    }
};

struct Q6_K : Block256<ops::kTileQ6_K, 4, 6, 16, false, false> {
    // Run r is quarter r % 4 of half r / 4: quarters 0 and 1 are low nibbles of a field each, 2 and 3 the high ones.
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane) {
        const uint32_t high = ((raw.field[4 + run / 4][i] >> (run % 4 * 2)) & 0x03030303u) << 4;
        return less<32>(((raw.field[run / 4 * 2 + run % 2][i] >> (run % 4 / 2 * 4)) & 0x0f0f0f0fu) | high);
    }
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[4]) {
#pragma unroll
        for (int j = 0; j < 4; ++j) words[j] = raw.head[j][i];
    }
};

struct IQ4_XS : Block256<ops::kTileIQ4_XS, 1, 4, 8, false, true> {
    // A field is the nibbles of two runs, four columns each.
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane) {
        return look_up_iq4(raw.field[run / 2][run % 2 * 2 + i % 2], i / 2);
    }
    // scales_l' has its nibbles in order; two shifts of scales_h' put a bit pair into bits 4 and 5 of each byte (kScalesHigh).
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[2]) {
        const uint32_t low = raw.head[0][i], high = (raw.second >> (16 * i)) & 0xffffu, spread = high | high << 14;
        words[0] = less<32>((low & 0x0f0f0f0fu) | (spread & 0x30303030u));
        words[1] = less<32>(((low >> 4) & 0x0f0f0f0fu) | ((spread << 4) & 0x30303030u));
    }
};

// ---- floats: a block is one k ---------------------------------------------------------------------------------------------------------

template <class S>
struct Floats {
    static constexpr int kLen = 1, kBytes = static_cast<int>(sizeof(S)) * ops::kTileRows;
    using Stored = S;
    struct alignas(2 * sizeof(S)) Pair {
        S row[2];
    };
    __device__ static Pair load(const std::byte* tile, int k, Lane lane) {
        return reinterpret_cast<const Pair*>(tile + k * kBytes)[lane.g];
    }
};
struct F32 : Floats<uint32_t> {
    __device__ static float value(uint32_t bits) { return f_bits(bits); }
};
struct F16 : Floats<uint16_t> {
    __device__ static float value(uint16_t bits) { return f_half(bits); }
};
struct BF16 : Floats<uint16_t> {
    __device__ static float value(uint16_t bits) { return f_bits(static_cast<uint32_t>(bits) << 16); }
};

}  // namespace moepic::device
