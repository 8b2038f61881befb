// The types whose magnitudes come from a codebook (quant/grids.h), as weights.cuh has the others: IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S.
// A dword of codes is
//
//   index -> an entry of the codebook: four levels, a nibble each -> their magnitudes, or the negated ones where signs' says so
//
// Nibbles are what __byte_perm chooses bytes by, so an entry is stored as its operand, in 16 bits: levels of 4 weights (IQ3), or of 8
// (IQ2: bits 0, 1 of each nibble are those of weights 0 .. 3, bits 2, 3 those of weights 4 .. 7). A codebook so is 512 bytes (XXS), 1024
// (IQ2_XS, IQ3_S) or 2048 (IQ2_S), 4 to 16 lines, which L1 keeps. A block of 16 rows takes 32 lookups of a warp, and each costs as many
// steps of L1 as it meets lines: entries that are magnitudes already, of 4 (IQ3) or 8 bytes, would have 2 or 4 times the lines. Constant
// memory would take a step for each different index, 16 or 32. Not measured: this was written without a GPU.
//
// All 4 lanes of a row need something of every column. Each loads one column of four, so that a warp's load is 256 consecutive bytes here,
// too, and they pass columns on by shuffles: 9 to 19 registers a block instead of 33 to 55, so two blocks can be on their way. Alone, none
// of the types makes a kernel of few tokens spill (ptxas 13.0, 8.0).
#pragma once

#include "cuda/weights.cuh"
#include "quant/grids.h"

namespace moepic::device {

template <int n>
struct Grid {
    uint16_t v[n];
    __device__ uint32_t at(uint32_t index) const { return __ldg(v + index); }
};

template <int n>
__host__ __device__ constexpr Grid<n> halves_side_by_side(const uint16_t (&entries)[n]) {
    Grid<n> grid{};
    for (int k = 0; k < n; ++k) {
        unsigned entry = 0;
        for (int i = 0; i < 4; ++i) entry |= ((entries[k] >> (2 * i) & 3u) | (entries[k] >> (8 + 2 * i) & 3u) << 2) << (4 * i);
        grid.v[k] = static_cast<uint16_t>(entry);
    }
    return grid;
}
template <int n>
__host__ __device__ constexpr Grid<n> as_they_are(const uint16_t (&entries)[n]) {
    Grid<n> grid{};
    for (int k = 0; k < n; ++k) grid.v[k] = entries[k];
    return grid;
}

__device__ constexpr Grid<256> kGrid2XXS = halves_side_by_side(iq2_xxs_grid);
__device__ constexpr Grid<512> kGrid2XS = halves_side_by_side(iq2_xs_grid);
__device__ constexpr Grid<1024> kGrid2S = halves_side_by_side(iq2_s_grid);
__device__ constexpr Grid<256> kGrid3XXS = as_they_are(iq3_xxs_grid);
__device__ constexpr Grid<512> kGrid3S = as_they_are(iq3_s_grid);

// Up to 8 magnitudes as bytes, and negated. An aggregate: nvcc writes template arguments out as one.
struct Levels {
    uint32_t plus[2] = {}, minus[2] = {};
};
template <int n>
__host__ __device__ constexpr Levels levels_of(const int8_t (&magnitudes)[n]) {
    Levels levels;
    for (int i = 0; i < n; ++i) {
        levels.plus[i / 4] |= static_cast<uint32_t>(magnitudes[i]) << (i % 4 * 8);
        levels.minus[i / 4] |= (static_cast<uint32_t>(-magnitudes[i]) & 255u) << (i % 4 * 8);
    }
    return levels;
}

// What a lane looks up for a row of a run: the levels of its dwords c and c + 4, and signs' of the run.
struct Entries {
    uint32_t levels[2], signs;
};

// Columns in a block, in order: `indices` fields of 4 columns, `between` heads, `signs` fields, `behind` heads. The lanes of a row have a
// column of each field, and all of the heads. T::entries(raw, run, i, lane): for row 2g + i.
template <class T, ops::TileShape shape, Levels magnitudes, int divisor, int subs, int indices, int between, int signs, int behind>
struct GridBlock {
    static constexpr int kLen = 256, kBody = shape.body, kEnds = shape.ends, kTerms = 1, kSubs = subs;
    static constexpr bool kMin = false;
    static constexpr int kFields = indices + signs, kHeads = between + behind;
    static_assert(kBody == (4 * kFields + kHeads) * ops::kColumn);
    struct Raw {
        uint32_t field[kFields][2], head[kHeads > 0 ? kHeads : 1][2], d;
    };
    __device__ static Raw load(const std::byte* body, const std::byte* ends, Lane lane) {
        Raw raw{};
#pragma unroll
        for (int i = 0; i < kFields; ++i) {
            const uint2 own = column(body, 4 * i + (i < indices ? 0 : between) + lane.c, lane);
            raw.field[i][0] = own.x, raw.field[i][1] = own.y;
        }
#pragma unroll
        for (int i = 0; i < kHeads; ++i) {
            const uint2 both = column(body, 4 * (i < between ? indices : kFields) + i, lane);
            raw.head[i][0] = both.x, raw.head[i][1] = both.y;
        }
        raw.d = end_pair(ends, 0, lane);
        return raw;
    }
    __device__ static float d(const Raw& raw, int i) { return half_of(raw.d, i) * (1.0f / divisor); }
    __device__ static void codes(const Raw& raw, int run, Lane lane, uint32_t (&a)[4]) {
        // The sign of byte i of dword c is bit 8 i + 4 (c % 2) + c / 2, that of dword c + 4 two bits further.
        static_assert(ops::kSignBit[1] == 4 && ops::kSignBit[2] == 1 && ops::kSignBit[3] == 5 && ops::kSignBit[4] == 2);
        const int to_top = 7 - (lane.c % 2 * 4 + lane.c / 2);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const Entries found = T::entries(raw, run, i, lane);
            a[i] = signed_levels(found.levels[0], found.signs << to_top);
            a[2 + i] = signed_levels(found.levels[1], found.signs << (to_top - 2));
        }
    }

protected:
    // Column `at` of those in fields, in row 2g + i, from the lane that has it.
    __device__ static uint32_t passed(const Raw& raw, int at, int i) { return __shfl_sync(kAllLanes, raw.field[at / 4][i], at % 4, 4); }
    // Of four bytes the levels (nibbles) and signs (top bits) to codes.
    __device__ static uint32_t signed_levels(uint32_t levels, uint32_t signs_on_top) {
        const uint32_t plus = __byte_perm(magnitudes.plus[0], magnitudes.plus[1], levels);
        const uint32_t minus = __byte_perm(magnitudes.minus[0], magnitudes.minus[1], levels);
        const uint32_t is_minus = __byte_perm(signs_on_top, 0, 0xba98);  // a byte's top bit all over it
        return (plus & ~is_minus) | (minus & is_minus);
    }
};

__device__ inline uint32_t byte_of(uint32_t dword, int i) {
    return (dword >> (8 * i)) & 255u;
}
// Signs of four groups, the last of each from its other seven. The four bits that the last ones take are lost.
__device__ inline uint32_t with_last_signs(uint32_t dword) {
    const uint32_t seven = dword & 0x0fffffffu;
    uint32_t odd = seven ^ seven >> 4;
    odd ^= odd >> 16;
    odd ^= odd >> 8;
    return seven | odd << 28;
}
// Bytes 2 s + 1, s the low (part 0) or high nibbles of a column of scales'.
__device__ inline uint32_t odd_nibbles(uint32_t column, int part) {
    return ((part == 0 ? column << 1 : column >> 3) & 0x1e1e1e1eu) | 0x01010101u;
}
// The same of a dword's top nibble, in byte 0.
__device__ inline uint32_t odd_top_nibble(uint32_t dword) {
    return (dword >> 28) * 2 + 1;
}
// A word whose bytes the lanes of a row have, zeros elsewhere.
__device__ inline uint32_t joined(uint32_t part) {
    part |= __shfl_xor_sync(kAllLanes, part, 1);
    return part | __shfl_xor_sync(kAllLanes, part, 2);
}
// Where the high bits of run r begin in a dword of qh': those of lookups 2 and 3 (h = 1 in tiles.h) are 16 bits further.
__device__ inline uint32_t high_bits(uint32_t qh, int run) {
    return qh >> (run % 4 / 2 * 8 + run % 2 * 4);
}

// ---- IQ2: a lane takes half c % 2 of groups c / 2 and c / 2 + 2 ------------------------------------------------------------------------

inline constexpr Levels kLevels2 = levels_of(iq2_levels);

template <int n>
__device__ inline uint32_t half_entry(const Grid<n>& grid, uint32_t index, Lane lane) {
    return (grid.at(index) >> (lane.c % 2 * 2)) & 0x3333u;
}

struct IQ2_XXS : GridBlock<IQ2_XXS, ops::kTileIQ2_XXS, kLevels2, 8, 8, 4, 0, 0, 0> {
    __device__ static Entries entries(const Raw& raw, int run, int i, Lane lane) {
        const uint32_t low = passed(raw, 2 * run, i) >> (lane.c / 2 * 8), signs = with_last_signs(passed(raw, 2 * run + 1, i));
        return {{half_entry(kGrid2XXS, byte_of(low, 0), lane), half_entry(kGrid2XXS, byte_of(low, 2), lane)}, signs};
    }
    // Columns 1, 3, .. have the scales of runs 0, 1, ..: odd lanes those of two runs in two fields.
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[2]) {
        const Lane lane = this_lane();
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const uint32_t own = odd_top_nibble(raw.field[2 * j][i]) | odd_top_nibble(raw.field[2 * j + 1][i]) << 16;
            words[j] = joined(lane.c % 2 == 0 ? 0u : own << (lane.c / 2 * 8));
        }
    }
};

// IQ2_XS and IQ2_S: scales' are two heads, the first of them `first`.
template <int first, class Raw>
__device__ inline void scales_of_sixteen(const Raw& raw, int i, uint32_t (&words)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = odd_nibbles(raw.head[first + j / 2][i], j % 2);
}

struct IQ2_XS : GridBlock<IQ2_XS, ops::kTileIQ2_XS, kLevels2, 8, 16, 4, 2, 0, 0> {
    // The ninth bits of groups 0 .. 3 are bits 28 .. 31 of signs'.
    __device__ static Entries entries(const Raw& raw, int run, int i, Lane lane) {
        const uint32_t low = passed(raw, 2 * run, i) >> (lane.c / 2 * 8), signs = passed(raw, 2 * run + 1, i);
        const uint32_t ninth = signs >> (28 + lane.c / 2);
        const uint32_t first = byte_of(low, 0) | (ninth & 1u) << 8, second = byte_of(low, 2) | (ninth & 4u) << 6;
        return {{half_entry(kGrid2XS, first, lane), half_entry(kGrid2XS, second, lane)}, with_last_signs(signs)};
    }
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[4]) { scales_of_sixteen<0>(raw, i, words); }
};

struct IQ2_S : GridBlock<IQ2_S, ops::kTileIQ2_S, kLevels2, 8, 16, 2, 0, 2, 4> {
    __device__ static Entries entries(const Raw& raw, int run, int i, Lane lane) {
        const uint32_t low = passed(raw, run, i) >> (lane.c / 2 * 8);
        const uint32_t high = high_bits(raw.head[run / 4][i], run) >> (lane.c / 2 * 2);
        const uint32_t first = byte_of(low, 0) | (high & 3u) << 8, second = byte_of(low, 2) | (high >> 16 & 3u) << 8;
        return {{half_entry(kGrid2S, first, lane), half_entry(kGrid2S, second, lane)}, passed(raw, 8 + run, i)};
    }
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[4]) { scales_of_sixteen<2>(raw, i, words); }
};

// ---- IQ3: a lane takes entries c and c + 4, bytes c of two columns ---------------------------------------------------------------------

struct IQ3_XXS : GridBlock<IQ3_XXS, ops::kTileIQ3_XXS, levels_of(iq3_xxs_levels), 4, 8, 4, 0, 2, 0> {
    __device__ static Entries entries(const Raw& raw, int run, int i, Lane lane) {
        const uint32_t first = byte_of(passed(raw, 2 * run, i), lane.c), second = byte_of(passed(raw, 2 * run + 1, i), lane.c);
        return {{kGrid3XXS.at(first), kGrid3XXS.at(second)}, with_last_signs(passed(raw, 16 + run, i))};
    }
    // The scale of run s is in column s of signs'.
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[2]) {
        const Lane lane = this_lane();
#pragma unroll
        for (int j = 0; j < 2; ++j) words[j] = joined(odd_top_nibble(raw.field[4 + j][i]) << (8 * lane.c));
    }
};

struct IQ3_S : GridBlock<IQ3_S, ops::kTileIQ3_S, levels_of(iq3_s_levels), 1, 8, 4, 2, 2, 1> {
    // Index 4 a + c, c = 2 h + b, takes bit 2 a + b of half h.
    __device__ static Entries entries(const Raw& raw, int run, int i, Lane lane) {
        const uint32_t high = high_bits(raw.head[run / 4][i], run) >> (lane.c / 2 * 16 + lane.c % 2);
        const uint32_t first = byte_of(passed(raw, 2 * run, i), lane.c) | (high & 1u) << 8;
        const uint32_t second = byte_of(passed(raw, 2 * run + 1, i), lane.c) | (high & 4u) << 6;
        return {{kGrid3S.at(first), kGrid3S.at(second)}, passed(raw, 16 + run, i)};
    }
    __device__ static void scales(const Raw& raw, int i, uint32_t (&words)[2]) {
        words[0] = odd_nibbles(raw.head[2][i], 0);
        words[1] = odd_nibbles(raw.head[2][i], 1);
    }
};

}  // namespace moepic::device
