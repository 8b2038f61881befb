// What the emulation tells AddressSanitizer and ThreadSanitizer, which can't see that a switch of stacks is a switch of threads.
// MOEPIC_TSAN comes from the build: the emulation's own files are compiled without the instrumentation that would define a macro, so that
// only kernels and host code are watched, not the scheduler between them.
#pragma once

#include <cstddef>

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

}  // namespace moepic::simt
