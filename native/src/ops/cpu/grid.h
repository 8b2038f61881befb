// Codebooks (quant/grids.h) in the shape the kernels look them up in, 32 indices at a time.
//
// An entry is spread over a dword, one nibble to a byte:
//   IQ2   bits 0, 1 of byte i: level of weight i;  bits 2, 3: level of weight 4 + i
//   IQ3   bits 0 .. 2 of byte i: level of weight i
//
// AVX-512 keeps the four nibbles in a half-word and looks 32 of them up by permutations of 64: 4 to 16 for a whole codebook, and a tree
// of choices by the higher bits of the index. Elsewhere the dwords lie in memory and gathers fetch them (AVX2), or 16 loads. Measured on
// one thread of Zen 5, one token, GB/s of weights: IQ2_XXS 19.5, IQ2_XS 15.1, IQ2_S 13.2, IQ3_XXS 21.2, IQ3_S 18.1; by gathers of
// AVX-512 8.7, 8.5, 9.0, 6.8, 7.0; AVX2 6.0, 5.7, 6.6, 5.2, 5.9. Memory gives this thread 40, so unpacking is the bound throughout.
#pragma once

#include "ops/cpu/bytes.h"
#include "quant/grids.h"

namespace moepic::ops::MOEPIC_ISA {

constexpr uint32_t spread_eight(uint16_t entry) {
    uint32_t dword = 0;
    for (int i = 0; i < 4; ++i) dword |= ((entry >> (2 * i) & 3u) | (entry >> (8 + 2 * i) & 3u) << 2) << (8 * i);
    return dword;
}
constexpr uint32_t spread_four(uint16_t entry) {
    uint32_t dword = 0;
    for (int i = 0; i < 4; ++i) dword |= (entry >> (4 * i) & 7u) << (8 * i);
    return dword;
}

#if MOEPIC_SIMD_AVX512

// The nibbles of bytes 0, 2, 1, 3 of the dword, lowest first: so they come apart again by one shift and one choice.
template <int n>
struct alignas(64) Grid {
    uint16_t v[n];
    constexpr Grid(const uint16_t (&entries)[n], uint32_t (*spread)(uint16_t)) : v{} {
        for (int i = 0; i < n; ++i) {
            const uint32_t dword = spread(entries[i]);
            v[i] = static_cast<uint16_t>(dword | dword >> 12);
        }
    }
};

// The entries at the indices in the lower and in the upper half-word of each lane. Bits of an index beyond the grid's size don't count.
// Bits 4 .. 7 of each byte that comes back are undefined, except bit 7 of IQ3: it is zero.
template <int n>
[[gnu::always_inline]] inline void i_grid(const Grid<n>& grid, I16x indices, I16x& low, I16x& high) {
    __m512i found[n / 64];
    for (int i = 0; i < n / 64; ++i)
        found[i] = _mm512_permutex2var_epi16(_mm512_load_si512(grid.v + 64 * i), indices.v, _mm512_load_si512(grid.v + 64 * i + 32));
    for (int bit = 64; bit < n; bit *= 2) {
        const __mmask32 upper = _mm512_test_epi16_mask(indices.v, _mm512_set1_epi16(static_cast<int16_t>(bit)));
        for (int i = 0; i < n / (2 * bit); ++i) found[i] = _mm512_mask_blend_epi16(upper, found[2 * i], found[2 * i + 1]);
    }
    const I16x entry{found[0]};
    low = i_select(0xfff, entry, i_shl<12>(entry));
    high = i_select(0xffff, i_shr<16>(entry), i_shr<4>(entry));
}

#else

template <int n>
struct Grid {
    uint32_t v[n];
    constexpr Grid(const uint16_t (&entries)[n], uint32_t (*spread)(uint16_t)) : v{} {
        for (int i = 0; i < n; ++i) v[i] = spread(entries[i]);
    }
};

template <int n>
[[gnu::always_inline]] inline I16x i_fetch(const Grid<n>& grid, I16x indices) {
#if MOEPIC_SIMD_AVX2
    const int* table = reinterpret_cast<const int*>(grid.v);
    return {_mm256_i32gather_epi32(table, indices.lo, 4), _mm256_i32gather_epi32(table, indices.hi, 4)};
#else
    return i_each([&](int i) { return static_cast<int32_t>(grid.v[indices.v[i]]); });
#endif
}

template <int n>
[[gnu::always_inline]] inline void i_grid(const Grid<n>& grid, I16x indices, I16x& low, I16x& high) {
    low = i_fetch(grid, indices & i_set(n - 1));
    high = i_fetch(grid, i_shr<16>(indices) & i_set(n - 1));
}

#endif

}  // namespace moepic::ops::MOEPIC_ISA
