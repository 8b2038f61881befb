// Bytes of 16 rows to dword columns: what re-tiling is made of (tile.cpp). Also the ways a column is stored in halves.
#pragma once

#include "ops/cpu/bytes.h"
#include "ops/ops.h"

namespace moepic::ops::MOEPIC_ISA {

static_assert(kTileRows == kLanes);

// 16 rows, all of which exist.
struct Rows {
    const std::byte* first;
    size_t stride;

    const std::byte* at(int r, size_t offset) const { return first + static_cast<size_t>(r) * stride + offset; }
};

#if MOEPIC_SIMD_AVX512

// Columns c[0..3]: bytes offset .. offset + 15 of each row. A 128-bit part p of register q takes them from row 4 p + q; what is left to do,
// transposing four dwords by four, stays inside the parts.
[[gnu::always_inline]] inline void i_columns(const Rows& rows, size_t offset, I16x (&c)[4]) {
    const auto part = [&](int r)
                          __attribute__((always_inline)) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.at(r, offset))); };
    __m512i q[4];
    for (int i = 0; i < 4; ++i) {
        q[i] = _mm512_inserti32x4(_mm512_castsi128_si512(part(i)), part(4 + i), 1);
        q[i] = _mm512_inserti32x4(_mm512_inserti32x4(q[i], part(8 + i), 2), part(12 + i), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(q[0], q[1]), b = _mm512_unpacklo_epi32(q[2], q[3]);
    const __m512i d = _mm512_unpackhi_epi32(q[0], q[1]), e = _mm512_unpackhi_epi32(q[2], q[3]);
    c[0] = {_mm512_unpacklo_epi64(a, b)};
    c[1] = {_mm512_unpackhi_epi64(a, b)};
    c[2] = {_mm512_unpacklo_epi64(d, e)};
    c[3] = {_mm512_unpackhi_epi64(d, e)};
}

// The lower half of each lane: 32 bytes.
inline void i_store_low_halves(void* p, I16x a) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
// The lower halves, then the upper ones.
inline I16x i_halves(I16x a) {
    const __m512i apart = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    return {_mm512_permutexvar_epi64(order, _mm512_shuffle_epi8(a.v, apart))};
}
// Past the caches, to a cache line; the fence puts such stores before all that follows.
inline void i_stream(void* p, I16x a) {
    _mm512_stream_si512(static_cast<__m512i*>(p), a.v);
}
inline void stream_fence() {
    _mm_sfence();
}

#elif MOEPIC_SIMD_AVX2

[[gnu::always_inline]] inline void i_columns(const Rows& rows, size_t offset, I16x (&c)[4]) {
    const auto part = [&](int r)
                          __attribute__((always_inline)) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.at(r, offset))); };
    const auto half = [&](int first, __m256i(&to)[4]) __attribute__((always_inline)) {
        __m256i q[4];
        for (int i = 0; i < 4; ++i) q[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(part(first + i)), part(first + 4 + i), 1);
        const __m256i a = _mm256_unpacklo_epi32(q[0], q[1]), b = _mm256_unpacklo_epi32(q[2], q[3]);
        const __m256i d = _mm256_unpackhi_epi32(q[0], q[1]), e = _mm256_unpackhi_epi32(q[2], q[3]);
        to[0] = _mm256_unpacklo_epi64(a, b);
        to[1] = _mm256_unpackhi_epi64(a, b);
        to[2] = _mm256_unpacklo_epi64(d, e);
        to[3] = _mm256_unpackhi_epi64(d, e);
    };
    __m256i lo[4], hi[4];
    half(0, lo);
    half(8, hi);
    for (int i = 0; i < 4; ++i) c[i] = {lo[i], hi[i]};
}

inline I16x i_halves(I16x a) {
    const __m256i apart = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    const __m256i lo = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(a.lo, apart), 0xd8);
    const __m256i hi = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(a.hi, apart), 0xd8);
    return {_mm256_permute2x128_si256(lo, hi, 0x20), _mm256_permute2x128_si256(lo, hi, 0x31)};
}
inline void i_stream(void* p, I16x a) {
    __m256i* const to = static_cast<__m256i*>(p);
    _mm256_stream_si256(to, a.lo);
    _mm256_stream_si256(to + 1, a.hi);
}
inline void stream_fence() {
    _mm_sfence();
}
inline void i_store_low_halves(void* p, I16x a) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(a.lo, low), _mm256_and_si256(a.hi, low));
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

#else  // plain C++

inline void i_columns(const Rows& rows, size_t offset, I16x (&c)[4]) {
    for (int r = 0; r < kLanes; ++r)
        for (int i = 0; i < 4; ++i) c[i].v[r] = load_dword(rows.at(r, offset + 4 * static_cast<size_t>(i)));
}

inline void i_store_low_halves(void* p, I16x a) {
    for (int r = 0; r < kLanes; ++r) {
        const uint16_t half = static_cast<uint16_t>(a.v[r]);
        std::memcpy(static_cast<std::byte*>(p) + 2 * r, &half, 2);
    }
}
inline I16x i_halves(I16x a) {
    I16x halves;
    i_store_low_halves(halves.v, a);
    i_store_low_halves(halves.v + kLanes / 2, i_shr<16>(a));
    return halves;
}
inline void i_stream(void* p, I16x a) {
    i_store(p, a);
}
inline void stream_fence() {}

#endif

inline void i_store_halves(void* p, I16x a) {
    i_store(p, i_halves(a));
}

}  // namespace moepic::ops::MOEPIC_ISA
