// Test-only: the ceilings of this machine: how fast it reads memory, beside which a decode's GB/s is printed, and how fast it multiplies.
#pragma once

#include <stdint.h>

#ifndef MOEPIC_API
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#endif

/* cdef: begin */
/* Reads a fresh buffer of n_bytes with n_threads (0: all usable cores) over and over for `seconds` and gives bytes per second of the best
 * and of the median pass. Choose n_bytes well above the last-level cache. E_ARGUMENT, E_NO_MEMORY. */
MOEPIC_API int32_t moepic_test_memory_bandwidth(double* best, double* median, int64_t n_bytes, int32_t n_threads, double seconds);
/* The most multiplications and additions of 8-bit codes a second, of n_threads (0: all usable cores) together with the instructions of
 * `isa` (0 scalar, 1 AVX2, 2 AVX-512), by the best of many short runs during `seconds`. E_ARGUMENT, E_UNSUPPORTED. */
MOEPIC_API int32_t moepic_test_code_products(double* best, int32_t isa, int32_t n_threads, double seconds);
/* cdef: end */
