// The types whose magnitudes come from a codebook (quant/grids.h), as weights.cuh has the others: IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S.
// An index chooses 8 (IQ2) or 4 (IQ3) magnitudes, and a lane wants 4 of them at a time: a load of 4 bytes from a table of 1 to 8 KB that
// the first-level cache keeps. Signs of a run are a dword, so that those of a dword of codes are one shift away (tiles.h).
#pragma once

#include "cuda/weights.cuh"
#include "quant/grids.h"

namespace moepic::device {

// Magnitudes of 4 weights as bytes: of IQ2, entry i at 2i and 2i + 1.
template <int n>
struct Codebook {
    uint32_t four[n];
};
template <int n>
constexpr Codebook<2 * n> codebook_of_eights(const uint16_t (&grid)[n]) {
    Codebook<2 * n> out{};
    for (int i = 0; i < 8 * n; ++i) {
        const int level = (grid[i / 8] >> (2 * (i % 8))) & 3;
        out.four[i / 4] |= static_cast<uint32_t>(iq2_levels[level]) << (8 * (i % 4));
    }
    return out;
}
template <int n>
constexpr Codebook<n> codebook_of_fours(const uint16_t (&grid)[n], const int8_t (&levels)[8]) {
    Codebook<n> out{};
    for (int i = 0; i < 4 * n; ++i) out.four[i / 4] |= static_cast<uint32_t>(levels[(grid[i / 4] >> (4 * (i % 4))) & 7]) << (8 * (i % 4));
    return out;
}

__device__ const Codebook<512> kBook2XXS = codebook_of_eights(iq2_xxs_grid);
__device__ const Codebook<1024> kBook2XS = codebook_of_eights(iq2_xs_grid);
__device__ const Codebook<2048> kBook2S = codebook_of_eights(iq2_s_grid);
__device__ const Codebook<256> kBook3XXS = codebook_of_fours(iq3_xxs_grid, iq3_xxs_levels);
__device__ const Codebook<512> kBook3S = codebook_of_fours(iq3_s_grid, iq3_s_levels);

// The last sign of each of four groups from the other seven; what else its top four bits held is lost.
__device__ inline uint32_t with_last_signs(uint32_t dword) {
    const uint32_t seven = dword & 0x0fffffffu;
    uint32_t odd = seven ^ seven >> 4;
    odd ^= odd >> 16;
    odd ^= odd >> 8;
    return seven | odd << 28;
}

// Bytes 2 s + 1 from nibbles.
__device__ inline uint32_t odd_bytes(uint32_t nibbles) {
    return (nibbles & 0x0f0f0f0fu) << 1 | 0x01010101u;
}

// A lane takes all columns: each dword of codes needs a byte of index, and the signs, of its run.
template <ops::TileShape shape, int columns, int subs>
struct GridBlock {
    static constexpr int kLen = 256, kBody = shape.body, kEnds = shape.ends, kTerms = 1, kSubs = subs, kFewAhead = 1;
    static constexpr bool kMin = false;
    static_assert(kBody == columns * ops::kColumn);
    struct Raw {
        uint32_t column[columns][2], d;
    };
    __device__ static Raw load(const std::byte* body, const std::byte* ends, Lane lane) {
        Raw raw;
#pragma unroll
        for (int i = 0; i < columns; ++i) {
            const uint2 both = column(body, i, lane);
            raw.column[i][0] = both.x, raw.column[i][1] = both.y;
        }
        raw.d = end_pair(ends, 0, lane);
        return raw;
    }

protected:
    // Dword j = c + 4 (i / 2) of a run: with the minus where a sign is set. Magnitudes are not 0, so no byte carries into the next.
    __device__ static uint32_t with_signs(uint32_t magnitudes, uint32_t signs, int i, Lane lane) {
        const uint32_t minus = (signs >> (lane.c % 2 * 4 + lane.c / 2 + i / 2 * 2)) & 0x01010101u;  // kSignBit[j]
        return (magnitudes ^ minus * 255u) + minus;
    }
    // Group of dword j, of four.
    __device__ static int group(int i, Lane lane) { return lane.c / 2 + i / 2 * 2; }
    // Scales of 8 sub-blocks from the nibbles of a dword, or of the runs from the top of their signs.
    __device__ static void nibble_scales(uint32_t both, uint32_t& first, uint32_t& second) {
        first = odd_bytes(both);
        second = odd_bytes(both >> 4);
    }
    template <int first, int step>
    __device__ static void top_scales(const Raw& raw, int i, uint32_t (&words)[2]) {
#pragma unroll
        for (int s = 0; s < 8; ++s) {
            const uint32_t scale = (raw.column[first + s * step][i] >> 28) << 1 | 1u;
            words[s / 4] = (s % 4 == 0 ? 0u : words[s / 4]) | scale << (8 * (s % 4));
        }
    }
};
static_assert(ops::kSignBit[1] == 4 && ops::kSignBit[2] == 1 && ops::kSignBit[4] == 2 && ops::kSignBit[7] == 7);

struct IQ2_XXS : GridBlock<ops::kTileIQ2_XXS, 16, 8> {
    __device__ static float d(const Raw& raw, int i) { return half_of(raw.d, i) * 0.125f; }
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[2]) { top_scales<1, 2>(raw, i, words); }
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane lane) {
        const uint32_t index = (raw.column[2 * run][i % 2] >> (8 * group(i, lane))) & 255u;
        return with_signs(__ldg(kBook2XXS.four + 2 * index + lane.c % 2), with_last_signs(raw.column[2 * run + 1][i % 2]), i, lane);
    }
};

struct IQ2_XS : GridBlock<ops::kTileIQ2_XS, 18, 16> {
    __device__ static float d(const Raw& raw, int i) { return half_of(raw.d, i) * 0.125f; }
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[4]) {
        nibble_scales(raw.column[16][i], words[0], words[1]);
        nibble_scales(raw.column[17][i], words[2], words[3]);
    }
    // The ninth bits of the indices are above the signs.
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane lane) {
        const int g = group(i, lane);
        const uint32_t signs = raw.column[2 * run + 1][i % 2];
        const uint32_t index = ((raw.column[2 * run][i % 2] >> (8 * g)) & 255u) | ((signs >> (28 + g)) & 1u) << 8;
        return with_signs(__ldg(kBook2XS.four + 2 * index + lane.c % 2), with_last_signs(signs), i, lane);
    }
};

struct IQ2_S : GridBlock<ops::kTileIQ2_S, 20, 16> {
    __device__ static float d(const Raw& raw, int i) { return half_of(raw.d, i) * 0.125f; }
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[4]) {
        nibble_scales(raw.column[18][i], words[0], words[1]);
        nibble_scales(raw.column[19][i], words[2], words[3]);
    }
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane lane) {
        const int g = group(i, lane);
        const uint32_t high = (raw.column[16 + run / 4][i % 2] >> (g / 2 * 16 + run % 4 * 4 + g % 2 * 2)) & 3u;
        const uint32_t index = ((raw.column[run][i % 2] >> (8 * g)) & 255u) | high << 8;
        return with_signs(__ldg(kBook2S.four + 2 * index + lane.c % 2), raw.column[8 + run][i % 2], i, lane);
    }
};

// Index j of a run is byte j % 4 of its column j / 4.
struct IQ3_XXS : GridBlock<ops::kTileIQ3_XXS, 24, 8> {
    __device__ static float d(const Raw& raw, int i) { return half_of(raw.d, i) * 0.25f; }
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[2]) { top_scales<16, 1>(raw, i, words); }
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane lane) {
        const uint32_t index = (raw.column[2 * run + i / 2][i % 2] >> (8 * lane.c)) & 255u;
        return with_signs(__ldg(kBook3XXS.four + index), with_last_signs(raw.column[16 + run][i % 2]), i, lane);
    }
};

struct IQ3_S : GridBlock<ops::kTileIQ3_S, 27, 8> {
    __device__ static float d(const Raw& raw, int i) { return half_of(raw.d, i); }
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[2]) { nibble_scales(raw.column[26][i], words[0], words[1]); }
    __device__ static uint32_t code(const Raw& raw, int run, int i, Lane lane) {
        const uint32_t high = (raw.column[16 + run / 4][i % 2] >> (lane.c / 2 * 16 + run % 4 * 4 + i / 2 * 2 + lane.c % 2)) & 1u;
        const uint32_t index = ((raw.column[2 * run + i / 2][i % 2] >> (8 * lane.c)) & 255u) | high << 8;
        return with_signs(__ldg(kBook3S.four + index), raw.column[18 + run][i % 2], i, lane);
    }
};

}  // namespace moepic::device
