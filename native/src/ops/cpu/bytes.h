// The byte-wise side of simd.h: sixteen dwords seen as 64 bytes or 32 half-words, and the dot products of 8-bit codes that the quantized
// matmuls rest on. Exact integers, so every instruction set gives the same value whatever its route.
//
// Codes come in two ranges:
//   narrow  0..127    u8 x s8 products of two neighbours fit 16 bits (127 * 127 * 2 < 2^15)
//   wide    -128..127 stored with the sign bit flipped (+ 128). AVX-512 multiplies the stored u8 and takes 128 * sum(x) away; AVX2 has only
//                     a saturating u8 x s8 multiply, so it goes back to signed and moves the sign over to x (|w| <= 128: no overflow)
#pragma once

#include <cstring>
#include <utility>

#include "ops/cpu/simd.h"

namespace moepic::ops::MOEPIC_ISA {

inline int32_t load_dword(const void* p) {
    int32_t v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// body(0), body(1), .. body(count - 1), each an integral constant.
template <int count, class Body>
[[gnu::always_inline]] inline void each_constant(Body body) {
    [&]<int... i>(std::integer_sequence<int, i...>)
        __attribute__((always_inline)) { (body(std::integral_constant<int, i>{}), ...); }(std::make_integer_sequence<int, count>{});
}

#if MOEPIC_SIMD_AVX512

inline constexpr int kWideBias = 128;  // what a wide code in a register carries

inline I16x i_max(I16x a, I16x b) {
    return {_mm512_max_epi32(a.v, b.v)};
}
inline int32_t i_max_lane(I16x a) {
    return _mm512_reduce_max_epi32(a.v);
}
inline int32_t i_sum_lanes(I16x a) {
    return _mm512_reduce_add_epi32(a.v);
}
inline void i_store_bytes(int8_t* p, I16x a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
inline I16x i_load_u8(const void* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
inline I16x i_load_u16(const void* p) {
    return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
inline I16x i_shr_by(I16x a, int n) {
    return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))};
}
inline I16x i_shl_by(I16x a, int n) {
    return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))};
}
// Bits of a where the mask has ones, of b where it has zeros.
inline I16x i_select(uint32_t mask, I16x a, I16x b) {
    return {_mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int32_t>(mask)), a.v, b.v, 0xca)};
}
inline I16x i_sub_bytes(I16x a, I16x b) {
    return {_mm512_sub_epi8(a.v, b.v)};
}
// Bytes 0 and 2 (1 and 3) of each dword, sign-extended to its two half-words.
inline I16x i_even_bytes(I16x a) {
    return {_mm512_srai_epi16(_mm512_slli_epi16(a.v, 8), 8)};
}
inline I16x i_odd_bytes(I16x a) {
    return {_mm512_srai_epi16(a.v, 8)};
}
inline I16x i_repeat16(const void* p) {
    return {_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
inline I16x i_lookup(I16x table, I16x codes) {
    return {_mm512_shuffle_epi8(table.v, codes.v)};
}  // by bits 0..3 of each byte of codes; bit 7 must be zero
inline I16x i_wide(I16x stored) {
    return stored;
}
// acc + the two half-word products of each dword with the pair at x.
inline I16x i_dot_pairs(I16x acc, I16x pairs, const int16_t* x) {
    return {_mm512_dpwssd_epi32(acc.v, pairs.v, _mm512_set1_epi32(load_dword(x)))};
}

#elif MOEPIC_SIMD_AVX2

inline constexpr int kWideBias = 0;

inline I16x i_max(I16x a, I16x b) {
    return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
inline int32_t i_max_lane(I16x a) {
    const __m256i half = _mm256_max_epi32(a.lo, a.hi);
    __m128i v = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    v = _mm_max_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}
inline int32_t i_sum_lanes(I16x a) {
    const __m256i half = _mm256_add_epi32(a.lo, a.hi);
    __m128i v = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}
inline void i_store_bytes(int8_t* p, I16x a) {
    // The low byte of each dword to the front of its 128-bit lane; packing instructions would saturate.
    const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1,
                                          -1, -1, -1, -1, -1, -1);
    const __m256i lo = _mm256_shuffle_epi8(a.lo, pick), hi = _mm256_shuffle_epi8(a.hi, pick);
    const __m128i front = _mm_unpacklo_epi32(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1));
    const __m128i back = _mm_unpacklo_epi32(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi64(front, back));
}
inline I16x i_load_u8(const void* p) {
    const __m128i v = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
inline I16x i_load_u16(const void* p) {
    const __m128i* v = static_cast<const __m128i*>(p);
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(v)), _mm256_cvtepu16_epi32(_mm_loadu_si128(v + 1))};
}
inline I16x i_shr_by(I16x a, int n) {
    const __m128i count = _mm_cvtsi32_si128(n);
    return {_mm256_srl_epi32(a.lo, count), _mm256_srl_epi32(a.hi, count)};
}
inline I16x i_shl_by(I16x a, int n) {
    const __m128i count = _mm_cvtsi32_si128(n);
    return {_mm256_sll_epi32(a.lo, count), _mm256_sll_epi32(a.hi, count)};
}
inline I16x i_select(uint32_t mask, I16x a, I16x b) {
    const I16x m = i_set(static_cast<int32_t>(mask));
    return ((a ^ b) & m) ^ b;
}
inline I16x i_sub_bytes(I16x a, I16x b) {
    return {_mm256_sub_epi8(a.lo, b.lo), _mm256_sub_epi8(a.hi, b.hi)};
}
inline I16x i_even_bytes(I16x a) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(a.lo, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(a.hi, 8), 8)};
}
inline I16x i_odd_bytes(I16x a) {
    return {_mm256_srai_epi16(a.lo, 8), _mm256_srai_epi16(a.hi, 8)};
}
inline I16x i_repeat16(const void* p) {
    const __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return {v, v};
}
inline I16x i_lookup(I16x table, I16x codes) {
    return {_mm256_shuffle_epi8(table.lo, codes.lo), _mm256_shuffle_epi8(table.hi, codes.hi)};
}
inline I16x i_wide(I16x stored) {
    return stored ^ i_set(static_cast<int32_t>(0x80808080u));
}
inline I16x i_dot_pairs(I16x acc, I16x pairs, const int16_t* x) {
    const __m256i v = _mm256_set1_epi32(load_dword(x));
    return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(pairs.lo, v)), _mm256_add_epi32(acc.hi, _mm256_madd_epi16(pairs.hi, v))};
}

#else  // plain C++

inline constexpr int kWideBias = 0;

inline I16x i_max(I16x a, I16x b) {
    return i_each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline int32_t i_max_lane(I16x a) {
    int32_t top = a.v[0];
    for (int i = 1; i < kLanes; ++i) top = a.v[i] > top ? a.v[i] : top;
    return top;
}
inline int32_t i_sum_lanes(I16x a) {
    uint32_t sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += static_cast<uint32_t>(a.v[i]);
    return static_cast<int32_t>(sum);
}
inline void i_store_bytes(int8_t* p, I16x a) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
inline I16x i_load_u8(const void* p) {
    return i_each([&](int i) { return int32_t{static_cast<const uint8_t*>(p)[i]}; });
}
inline I16x i_load_u16(const void* p) {
    return i_each([&](int i) {
        uint16_t v;
        std::memcpy(&v, static_cast<const uint8_t*>(p) + 2 * i, 2);
        return int32_t{v};
    });
}
inline I16x i_shr_by(I16x a, int n) {
    return i_each([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> n); });
}
inline I16x i_shl_by(I16x a, int n) {
    return i_each([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << n); });
}
inline int32_t byte_of(int32_t a, int i) {
    return static_cast<int8_t>(static_cast<uint32_t>(a) >> (8 * i));
}  // sign-extended
inline I16x i_select(uint32_t mask, I16x a, I16x b) {
    const I16x m = i_set(static_cast<int32_t>(mask));
    return ((a ^ b) & m) ^ b;
}
inline I16x i_sub_bytes(I16x a, I16x b) {
    I16x r;
    for (int i = 0; i < kLanes; ++i) {
        uint32_t v = 0;
        for (int j = 0; j < 4; ++j) v |= (static_cast<uint32_t>(byte_of(a.v[i], j) - byte_of(b.v[i], j)) & 255u) << (8 * j);
        r.v[i] = static_cast<int32_t>(v);
    }
    return r;
}
inline int32_t join_halves(int32_t lo, int32_t hi) {
    return static_cast<int32_t>((static_cast<uint32_t>(lo) & 0xffffu) | (static_cast<uint32_t>(hi) << 16));
}
inline I16x i_even_bytes(I16x a) {
    return i_each([&](int i) { return join_halves(byte_of(a.v[i], 0), byte_of(a.v[i], 2)); });
}
inline I16x i_odd_bytes(I16x a) {
    return i_each([&](int i) { return join_halves(byte_of(a.v[i], 1), byte_of(a.v[i], 3)); });
}
inline I16x i_repeat16(const void* p) {
    I16x r;
    for (int i = 0; i < 4; ++i) std::memcpy(r.v + 4 * i, p, 16);
    return r;
}
inline I16x i_lookup(I16x table, I16x codes) {
    const auto* values = reinterpret_cast<const uint8_t*>(table.v);
    return i_each([&](int i) {
        const uint32_t c = static_cast<uint32_t>(codes.v[i]);
        return static_cast<int32_t>(uint32_t{values[c & 15]} | uint32_t{values[(c >> 8) & 15]} << 8 |
                                    uint32_t{values[(c >> 16) & 15]} << 16 | uint32_t{values[c >> 24 & 15]} << 24);
    });
}
inline I16x i_wide(I16x stored) {
    return stored ^ i_set(static_cast<int32_t>(0x80808080u));
}
inline I16x i_dot_pairs(I16x acc, I16x pairs, const int16_t* x) {
    return i_each([&](int i) {
        const int32_t lo = static_cast<int16_t>(static_cast<uint32_t>(pairs.v[i]) & 0xffffu), hi = pairs.v[i] >> 16;
        return acc.v[i] + lo * x[0] + hi * x[1];
    });
}

#endif

// acc[i][t] += the dot products of `count` columns of codes of tile i with the 4 * count activations at x[t], for n tokens. code(i, j)
// gives column j (an integral constant) of tile i: 4 codes per lane. kMax: the largest code (narrow), or above 127 for wide codes.
//
// AVX-512 asks for a column where it is used, so that few are alive at once: registers are for the sums, of which tiles * n chains run side
// by side, and an activation dword, once broadcast, meets all tiles.
template <int kMax, int count, int tiles, int n, class Code>
[[gnu::always_inline]] inline void i_dots(I16x (&acc)[tiles][n], const int8_t* const (&x)[n], Code code) {
#if MOEPIC_SIMD_AVX512
    const auto column = [&]<int j>(std::integral_constant<int, j> at) __attribute__((always_inline)) {
        I16x w[tiles];
        for (int i = 0; i < tiles; ++i) w[i] = code(i, at);
        for (int t = 0; t < n; ++t) {
            const __m512i v = _mm512_set1_epi32(load_dword(x[t] + 4 * j));
            for (int i = 0; i < tiles; ++i) acc[i][t].v = _mm512_dpbusd_epi32(acc[i][t].v, w[i].v, v);
        }
    };
    each_constant<count>(column);
#elif MOEPIC_SIMD_AVX2
    const __m256i ones = _mm256_set1_epi16(1);
    constexpr bool wide = kMax > 127;
    // How many sums of two products fit 16 bits together, so that they are widened once.
    constexpr int fit = wide ? 1 : 32767 / (2 * 127 * kMax);
    constexpr int batch = fit >= count ? count : fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
    for (int i = 0; i < tiles; ++i) {
        __m256i lo[n], hi[n];
        each_constant<count>([&]<int j>(std::integral_constant<int, j> at) __attribute__((always_inline)) {
            const I16x w = code(i, at);
            I16x size = w;
            if constexpr (wide) size = {_mm256_abs_epi8(w.lo), _mm256_abs_epi8(w.hi)};
            for (int t = 0; t < n; ++t) {
                __m256i v = _mm256_set1_epi32(load_dword(x[t] + 4 * j)), u = v;
                if constexpr (wide) {
                    u = _mm256_sign_epi8(v, w.hi);
                    v = _mm256_sign_epi8(v, w.lo);
                }
                const __m256i a = _mm256_maddubs_epi16(size.lo, v), b = _mm256_maddubs_epi16(size.hi, u);
                lo[t] = j % batch == 0 ? a : _mm256_add_epi16(lo[t], a);
                hi[t] = j % batch == 0 ? b : _mm256_add_epi16(hi[t], b);
            }
            if constexpr (j % batch == batch - 1) {
                for (int t = 0; t < n; ++t) {
                    acc[i][t].lo = _mm256_add_epi32(acc[i][t].lo, _mm256_madd_epi16(lo[t], ones));
                    acc[i][t].hi = _mm256_add_epi32(acc[i][t].hi, _mm256_madd_epi16(hi[t], ones));
                }
            }
        });
    }
#else
    for (int i = 0; i < tiles; ++i)
        each_constant<count>([&](auto j) {
            const I16x w = code(i, j);
            for (int t = 0; t < n; ++t) {
                const int8_t* v = x[t] + 4 * j();
                for (int r = 0; r < kLanes; ++r) {
                    const int32_t c = w.v[r];  // narrow codes are below 128, so sign extension does them no harm
                    acc[i][t].v[r] += byte_of(c, 0) * v[0] + byte_of(c, 1) * v[1] + byte_of(c, 2) * v[2] + byte_of(c, 3) * v[3];
                }
            }
        });
#endif
}

}  // namespace moepic::ops::MOEPIC_ISA
