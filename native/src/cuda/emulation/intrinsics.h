// CUDA's device functions as simt.h lists them, over block.h. Their results are the hardware's, except that a NaN keeps its bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"

namespace moepic::simt {

template <class T>
uint64_t to_word(T value) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "a warp moves 32 and 64 bit numbers");
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    return word;
}
template <class T>
T from_word(uint64_t word) {
    T value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}
// Lanes form groups of `width`, a power of two; a source outside the own group is the own lane.
template <class T>
T shuffle_within(unsigned mask, T value, int source, int width, Where where) {
    const int own = lane();
    return from_word<T>(shuffle(mask, to_word(value), source / width == own / width && source >= 0 ? source : own, where));
}

}  // namespace moepic::simt

// ---- threads of a block and of a warp --------------------------------------------------------------------------------------------------

inline void __syncthreads(moepic::simt::Where where = moepic::simt::Where::current()) {
    moepic::simt::barrier(where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, moepic::simt::Where where = moepic::simt::Where::current()) {
    moepic::simt::sync_warp(mask, where);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, moepic::simt::Where where = moepic::simt::Where::current()) {
    const int own = moepic::simt::lane();
    return moepic::simt::shuffle_within(mask, value, own / width * width + (source & (width - 1)), width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, moepic::simt::Where where = moepic::simt::Where::current()) {
    return moepic::simt::shuffle_within(mask, value, moepic::simt::lane() ^ bits, width, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, moepic::simt::Where where = moepic::simt::Where::current()) {
    return moepic::simt::shuffle_within(mask, value, moepic::simt::lane() + static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, moepic::simt::Where where = moepic::simt::Where::current()) {
    return moepic::simt::shuffle_within(mask, value, moepic::simt::lane() - static_cast<int>(delta), width, where);
}
inline unsigned __ballot_sync(unsigned mask, int vote, moepic::simt::Where where = moepic::simt::Where::current()) {
    return moepic::simt::ballot(mask, vote != 0, where);
}
inline int __any_sync(unsigned mask, int vote, moepic::simt::Where where = moepic::simt::Where::current()) {
    return moepic::simt::ballot(mask, vote != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int vote, moepic::simt::Where where = moepic::simt::Where::current()) {
    return moepic::simt::ballot(mask, vote != 0, where) == mask;
}
[[noreturn]] inline void __trap(moepic::simt::Where where = moepic::simt::Where::current()) {
    moepic::simt::trap(where);
}
inline void __threadfence() {
    moepic::simt::fence();
}
inline void __threadfence_block() {
    moepic::simt::fence();
}
// Without ThreadSanitizer the processor itself must keep the order, for a host thread that reads mapped memory.
inline void __threadfence_system() {
#ifdef __SANITIZE_THREAD__
    moepic::simt::fence();
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

// ---- atomics: relaxed, as on a GPU -----------------------------------------------------------------------------------------------------

inline int atomicAdd(int* at, int value) {
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
inline unsigned atomicAdd(unsigned* at, unsigned value) {
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <class T>
    requires std::is_integral_v<T>
T atomicMax(T* at, T value) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old < value && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class T>
    requires std::is_integral_v<T>
T atomicMin(T* at, T value) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old > value && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class T>
    requires std::is_integral_v<T>
T atomicOr(T* at, T value) {
    return __atomic_fetch_or(at, value, __ATOMIC_RELAXED);
}
template <class T>
    requires std::is_integral_v<T>
T atomicExch(T* at, T value) {
    return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
}
template <class T>
    requires std::is_integral_v<T>
T atomicCAS(T* at, T expected, T value) {
    __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}

// ---- memory: hints mean nothing here ---------------------------------------------------------------------------------------------------

template <class T>
T __ldg(const T* at) {
    return *at;
}
template <class T>
T __ldcs(const T* at) {
    return *at;
}
template <class T>
T __ldcg(const T* at) {
    return *at;
}
template <class T>
void __stcs(T* at, T value) {
    *at = value;
}

// ---- arithmetic ------------------------------------------------------------------------------------------------------------------------

inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 32; i += 8)
        sum = static_cast<int>(static_cast<unsigned>(sum) +
                               static_cast<unsigned>(int{static_cast<int8_t>(a >> i)} * int{static_cast<int8_t>(b >> i)}));
    return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int i = 0; i < 32; i += 8) sum += (a >> i & 0xff) * (b >> i & 0xff);
    return sum;
}
inline int __popc(unsigned x) {
    return std::popcount(x);
}
inline int __clz(int x) {
    return std::countl_zero(static_cast<unsigned>(x));
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
// Byte i of the result is byte (selector >> 4 i) & 7 of b:a; bit 3 of a selector spreads that byte's sign instead.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned s = selector >> (4 * i) & 15;
        const unsigned byte = static_cast<unsigned>(bytes >> (8 * (s & 7))) & 0xff;
        out |= ((s & 8) != 0 ? (byte >> 7) * 0xff : byte) << (8 * i);
    }
    return out;
}
inline float __fmaf_rn(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fsub_rn(float a, float b) {
    return a - b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fsqrt_rn(float a) {
    return std::sqrt(a);
}
// To nearest, ties to even; out of range saturates and NaN is 0, as cvt.rni.s32.f32 does.
inline int __float2int_rn(float x) {
    if (!(x == x)) return 0;
    if (x >= 0x1p31f) return INT32_MAX;
    if (x <= -0x1p31f) return INT32_MIN;
    return static_cast<int>(std::nearbyint(x));
}
inline int __float_as_int(float x) {
    return std::bit_cast<int>(x);
}
inline unsigned __float_as_uint(float x) {
    return std::bit_cast<unsigned>(x);
}
inline float __int_as_float(int x) {
    return std::bit_cast<float>(x);
}
inline float __uint_as_float(unsigned x) {
    return std::bit_cast<float>(x);
}
using std::max;
using std::min;
