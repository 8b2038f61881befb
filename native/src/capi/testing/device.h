// Test-only: opening device libraries, and their memory, streams and events through device/buffer.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef MOEPIC_API
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#endif

/* cdef: begin */
/* kind is 0 for the emulation, 1 for CUDA. */

typedef struct {
    char name[128];
    int32_t major, minor; /* compute capability */
    int32_t is_emulated;
    uint64_t total_bytes;
} moepic_test_device_info;

/* folder is where the device library lies; NULL: beside this library. */
MOEPIC_API int moepic_test_device_open(int kind, const char* folder, moepic_test_device_info* out);

/* Copies n_bytes (a multiple of 4) from in to out, `piece` bytes at a time: through pinned memory, a copy stream and its event to the
   device, and back in another stream through a mailbox. */
MOEPIC_API int moepic_test_device_round_trip(int kind, const void* in, int64_t n_bytes, int64_t piece, void* out);

/* SimtOptions and SimtCounters of device/simt_options.h. */
MOEPIC_API int moepic_test_simt_options(uint64_t memory_bytes, uint64_t seed, int32_t n_threads, int32_t most_delay_us,
                                        int32_t failing_allocation, int32_t failing_copy, int32_t failing_launch, int32_t starving_launch);
MOEPIC_API int moepic_test_simt_counters(uint64_t* device_bytes, uint64_t* pinned_bytes, int64_t* n_launches, int64_t* n_copies);
/* cdef: end */
