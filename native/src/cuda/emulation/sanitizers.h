// What the emulation tells AddressSanitizer and ThreadSanitizer, which can't see that a switch of stacks is a switch of threads.
// MOEPIC_TSAN comes from the build: the emulation's own files are compiled without the instrumentation that would define a macro, so that
// only kernels and host code are watched, not the scheduler between them.
#pragma once

#include <cstddef>
#include <cstring>

#ifndef MOEPIC_TSAN
#define MOEPIC_TSAN 0
#endif
#ifdef __SANITIZE_ADDRESS__
#define MOEPIC_ASAN 1
#else
#define MOEPIC_ASAN 0
#endif

#if MOEPIC_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if MOEPIC_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace moepic::simt {

inline constexpr bool kSanitized = MOEPIC_ASAN || MOEPIC_TSAN;
inline constexpr unsigned kTsanNoSync = 1;  // __tsan_switch_to_fiber_no_sync: a switch by itself orders nothing

// What was written before give(p) is seen after take(p).
inline void give([[maybe_unused]] void* p) {
#if MOEPIC_TSAN
    __tsan_release(p);
#endif
}
inline void take([[maybe_unused]] void* p) {
#if MOEPIC_TSAN
    __tsan_acquire(p);
#endif
}

// Device memory, to AddressSanitizer: the host must not touch it. Kernels are not compiled for that sanitizer (access.h watches them), and
// the streams' copies are told apart below.
inline void close_to_host([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if MOEPIC_ASAN
    __asan_poison_memory_region(data, bytes);
#endif
}
inline void open_to_host([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if MOEPIC_ASAN
    __asan_unpoison_memory_region(data, bytes);
#endif
}
#if MOEPIC_ASAN
// Volatile, or the compiler would call memcpy and memset, which are watched wherever they are called from.
[[gnu::no_sanitize_address]] inline void copy_bytes(void* to, const void* from, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) static_cast<volatile char*>(to)[i] = static_cast<const char*>(from)[i];
}
[[gnu::no_sanitize_address]] inline void set_bytes(void* data, int value, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) static_cast<volatile char*>(data)[i] = static_cast<char>(value);
}
#else
inline void copy_bytes(void* to, const void* from, size_t bytes) {
    std::memcpy(to, from, bytes);
}
inline void set_bytes(void* data, int value, size_t bytes) {
    std::memset(data, value, bytes);
}
#endif

}  // namespace moepic::simt
