// Sixteen lanes of float or int32, for whichever instruction set this file is compiled for: AVX-512 (one register), AVX2 (two) or
// plain C++ (an array). Kernels are written once over these; every operation below gives the same bits in all three.
//
// Included only by sources that CMake compiles once per instruction set, with MOEPIC_ISA naming the namespace (scalar, avx2, avx512).
// Such sources must not instantiate inline library code with external linkage (std containers, streams): the linker may keep the
// AVX-512 copy for everyone.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
// gcc 12 warns inside its own header (an intentionally undefined pass-through operand, PR 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#if defined(__AVX512F__)
#define MOEPIC_SIMD_AVX512 1
#elif defined(__AVX2__)
#define MOEPIC_SIMD_AVX2 1
#else
#define MOEPIC_SIMD_SCALAR 1
#endif

namespace moepic::ops::MOEPIC_ISA {

inline constexpr int kLanes = 16;

#if MOEPIC_SIMD_AVX512

struct F16x {
    __m512 v;
};
struct I16x {
    __m512i v;
};

inline F16x f_set(float a) {
    return {_mm512_set1_ps(a)};
}
inline F16x f_load(const float* p) {
    return {_mm512_loadu_ps(p)};
}
inline void f_store(float* p, F16x a) {
    _mm512_storeu_ps(p, a.v);
}
inline F16x f_load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void f_store_half(uint16_t* p, F16x a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F16x f_load_bf16(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
inline F16x f_load_i8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline F16x operator+(F16x a, F16x b) {
    return {_mm512_add_ps(a.v, b.v)};
}
inline F16x operator-(F16x a, F16x b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
inline F16x operator*(F16x a, F16x b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
inline F16x operator/(F16x a, F16x b) {
    return {_mm512_div_ps(a.v, b.v)};
}
inline F16x f_fma(F16x a, F16x b, F16x c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
// As x86: the second operand where either is NaN.
inline F16x f_max(F16x a, F16x b) {
    return {_mm512_max_ps(a.v, b.v)};
}
inline F16x f_min(F16x a, F16x b) {
    return {_mm512_min_ps(a.v, b.v)};
}
inline F16x f_abs(F16x a) {
    return {_mm512_abs_ps(a.v)};
}
inline F16x f_round(F16x a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}  // half to even
inline F16x f_from_i(I16x a) {
    return {_mm512_cvtepi32_ps(a.v)};
}
inline I16x i_from_f(F16x a) {
    return {_mm512_cvtps_epi32(a.v)};
}  // half to even; out of range gives INT_MIN
inline F16x f_bits(I16x a) {
    return {_mm512_castsi512_ps(a.v)};
}
inline I16x i_bits(F16x a) {
    return {_mm512_castps_si512(a.v)};
}
inline I16x i_set(int32_t a) {
    return {_mm512_set1_epi32(a)};
}
inline I16x i_load(const void* p) {
    return {_mm512_loadu_si512(p)};
}
inline void i_store(void* p, I16x a) {
    _mm512_storeu_si512(p, a.v);
}
inline I16x operator+(I16x a, I16x b) {
    return {_mm512_add_epi32(a.v, b.v)};
}
inline I16x operator-(I16x a, I16x b) {
    return {_mm512_sub_epi32(a.v, b.v)};
}
inline I16x operator*(I16x a, I16x b) {
    return {_mm512_mullo_epi32(a.v, b.v)};
}
inline I16x operator&(I16x a, I16x b) {
    return {_mm512_and_si512(a.v, b.v)};
}
inline I16x operator|(I16x a, I16x b) {
    return {_mm512_or_si512(a.v, b.v)};
}
inline I16x operator^(I16x a, I16x b) {
    return {_mm512_xor_si512(a.v, b.v)};
}
template <int N>
inline I16x i_shl(I16x a) {
    return {_mm512_slli_epi32(a.v, N)};
}
template <int N>
inline I16x i_shr(I16x a) {
    return {_mm512_srli_epi32(a.v, N)};
}  // logical
template <int N>
inline I16x i_sar(I16x a) {
    return {_mm512_srai_epi32(a.v, N)};
}  // arithmetic

#elif MOEPIC_SIMD_AVX2

struct F16x {
    __m256 lo, hi;
};
struct I16x {
    __m256i lo, hi;
};

inline F16x f_set(float a) {
    const __m256 v = _mm256_set1_ps(a);
    return {v, v};
}
inline F16x f_load(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline void f_store(float* p, F16x a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline F16x f_load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void f_store_half(uint16_t* p, F16x a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F16x f_load_bf16(const uint16_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8))), 16))};
}
inline F16x f_load_i8(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))))};
}
inline F16x operator+(F16x a, F16x b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F16x operator-(F16x a, F16x b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F16x operator*(F16x a, F16x b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F16x operator/(F16x a, F16x b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline F16x f_fma(F16x a, F16x b, F16x c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F16x f_max(F16x a, F16x b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline F16x f_min(F16x a, F16x b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline F16x f_abs(F16x a) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
inline F16x f_round(F16x a) {
    return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F16x f_from_i(I16x a) {
    return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
inline I16x i_from_f(F16x a) {
    return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}
inline F16x f_bits(I16x a) {
    return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
inline I16x i_bits(F16x a) {
    return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)};
}
inline I16x i_set(int32_t a) {
    const __m256i v = _mm256_set1_epi32(a);
    return {v, v};
}
inline I16x i_load(const void* p) {
    const __m256i* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void i_store(void* p, I16x a) {
    __m256i* q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, a.lo);
    _mm256_storeu_si256(q + 1, a.hi);
}
inline I16x operator+(I16x a, I16x b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
inline I16x operator-(I16x a, I16x b) {
    return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
inline I16x operator*(I16x a, I16x b) {
    return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
}
inline I16x operator&(I16x a, I16x b) {
    return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
inline I16x operator|(I16x a, I16x b) {
    return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
inline I16x operator^(I16x a, I16x b) {
    return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)};
}
template <int N>
inline I16x i_shl(I16x a) {
    return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)};
}
template <int N>
inline I16x i_shr(I16x a) {
    return {_mm256_srli_epi32(a.lo, N), _mm256_srli_epi32(a.hi, N)};
}
template <int N>
inline I16x i_sar(I16x a) {
    return {_mm256_srai_epi32(a.lo, N), _mm256_srai_epi32(a.hi, N)};
}

#else  // plain C++

struct F16x {
    float v[kLanes];
};
struct I16x {
    int32_t v[kLanes];
};

template <class Op>
inline F16x f_each(Op op) {
    F16x r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = op(i);
    return r;
}
template <class Op>
inline I16x i_each(Op op) {
    I16x r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = op(i);
    return r;
}

float half_to_float(uint16_t h);  // cpu/scalar_half.cpp, over quant/half.h
uint16_t float_to_half(float f);

inline F16x f_set(float a) {
    return f_each([&](int) { return a; });
}
inline F16x f_load(const float* p) {
    F16x r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void f_store(float* p, F16x a) {
    std::memcpy(p, a.v, sizeof a.v);
}
inline F16x f_load_half(const uint16_t* p) {
    return f_each([&](int i) { return half_to_float(p[i]); });
}
inline void f_store_half(uint16_t* p, F16x a) {
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(a.v[i]);
}
inline F16x f_load_bf16(const uint16_t* p) {
    return f_each([&](int i) {
        const uint32_t u = static_cast<uint32_t>(p[i]) << 16;
        float f;
        std::memcpy(&f, &u, 4);
        return f;
    });
}
inline F16x f_load_i8(const int8_t* p) {
    return f_each([&](int i) { return static_cast<float>(p[i]); });
}
inline F16x operator+(F16x a, F16x b) {
    return f_each([&](int i) { return a.v[i] + b.v[i]; });
}
inline F16x operator-(F16x a, F16x b) {
    return f_each([&](int i) { return a.v[i] - b.v[i]; });
}
inline F16x operator*(F16x a, F16x b) {
    return f_each([&](int i) { return a.v[i] * b.v[i]; });
}
inline F16x operator/(F16x a, F16x b) {
    return f_each([&](int i) { return a.v[i] / b.v[i]; });
}
inline F16x f_fma(F16x a, F16x b, F16x c) {
    return f_each([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline F16x f_max(F16x a, F16x b) {
    return f_each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F16x f_min(F16x a, F16x b) {
    return f_each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F16x f_abs(F16x a) {
    return f_each([&](int i) { return std::fabs(a.v[i]); });
}
inline F16x f_round(F16x a) {
    return f_each([&](int i) { return std::nearbyint(a.v[i]); });
}
inline F16x f_from_i(I16x a) {
    return f_each([&](int i) { return static_cast<float>(a.v[i]); });
}
inline I16x i_from_f(F16x a) {
    return i_each([&](int i) {
        const float r = std::nearbyint(a.v[i]);
        return r >= -2147483648.0f && r < 2147483648.0f ? static_cast<int32_t>(r) : INT32_MIN;
    });
}
inline F16x f_bits(I16x a) {
    F16x r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
inline I16x i_bits(F16x a) {
    I16x r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
inline I16x i_set(int32_t a) {
    return i_each([&](int) { return a; });
}
inline I16x i_load(const void* p) {
    I16x r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void i_store(void* p, I16x a) {
    std::memcpy(p, a.v, sizeof a.v);
}
// Wrapping, as the vector instructions do.
inline int32_t wrap(int64_t a) {
    return static_cast<int32_t>(static_cast<uint32_t>(a));
}
inline I16x operator+(I16x a, I16x b) {
    return i_each([&](int i) { return wrap(int64_t{a.v[i]} + b.v[i]); });
}
inline I16x operator-(I16x a, I16x b) {
    return i_each([&](int i) { return wrap(int64_t{a.v[i]} - b.v[i]); });
}
inline I16x operator*(I16x a, I16x b) {
    return i_each([&](int i) { return wrap(int64_t{a.v[i]} * b.v[i]); });
}
inline I16x operator&(I16x a, I16x b) {
    return i_each([&](int i) { return a.v[i] & b.v[i]; });
}
inline I16x operator|(I16x a, I16x b) {
    return i_each([&](int i) { return a.v[i] | b.v[i]; });
}
inline I16x operator^(I16x a, I16x b) {
    return i_each([&](int i) { return a.v[i] ^ b.v[i]; });
}
template <int N>
inline I16x i_shl(I16x a) {
    return i_each([&](int i) { return wrap(int64_t{a.v[i]} << N); });
}
template <int N>
inline I16x i_shr(I16x a) {
    return i_each([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> N); });
}
template <int N>
inline I16x i_sar(I16x a) {
    return i_each([&](int i) { return a.v[i] >> N; });
}

#endif

}  // namespace moepic::ops::MOEPIC_ISA
