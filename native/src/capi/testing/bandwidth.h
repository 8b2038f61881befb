// Test-only: how fast this machine reads memory, the ceiling beside which moepic-bench prints a decode's GB/s.
#pragma once

#include <stdint.h>

#ifndef MOEPIC_API
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#endif

/* cdef: begin */
/* Reads a fresh buffer of n_bytes with n_threads (0: all usable cores) over and over for `seconds` and gives bytes per second of the best
 * and of the median pass. Choose n_bytes well above the last-level cache. E_ARGUMENT, E_NO_MEMORY. */
MOEPIC_API int32_t moepic_test_memory_bandwidth(double* best, double* median, int64_t n_bytes, int32_t n_threads, double seconds);
/* cdef: end */
