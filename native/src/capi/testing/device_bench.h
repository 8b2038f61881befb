// Test-only: how fast a device, its link and the CPU beside it move and compute bytes. Results of kernels are not looked at here;
// tests/cuda is.
#pragma once

#include <stdint.h>

#ifndef MOEPIC_API
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#endif

/* cdef: begin */
/* device is 0: emulated, 1: the first CUDA device. Times are medians over passes of about `seconds` together, after one pass that warms up.
 * E_ARGUMENT for a size or a time that can't be measured. */

/* Bytes per second. */
typedef struct {
    double copy_bytes_s;                                     /* inside the device's memory, bytes read and bytes written both counted */
    double to_device_bytes_s, to_host_bytes_s;               /* pieces of piece_bytes from and to pinned memory */
    double cpu_bytes_s;                                      /* weights of granules computed from memory (measure/granules.h) */
    double to_device_together_bytes_s, cpu_together_bytes_s; /* both at the same time */
    int32_t n_threads;                                       /* of the CPU */
} moepic_test_device_rates_result;
/* n_bytes: of each buffer, larger than any cache. n_threads 0: all usable cores. */
MOEPIC_API int32_t moepic_test_device_rates(moepic_test_device_rates_result* out, int32_t device, int64_t n_bytes, int64_t piece_bytes,
                                            int32_t n_threads, double seconds);

/* Seconds of a launch of device::Api::matmul for n_tokens. Launches take turns over n_copies of the weights, so that they come from memory
 * and not from a cache. weight_bytes: of one copy. */
MOEPIC_API int32_t moepic_test_device_time_matmul(double* launch_s, int64_t* weight_bytes, int32_t device, uint32_t type, int64_t rows,
                                                  int64_t cols, int64_t n_tokens, int32_t n_copies, double seconds);

/* Seconds of the two launches that compute n_tasks resident granules for one token in decode, and the bytes of weights each of them reads.
 * Launches take turns over n_groups times n_tasks granules. */
typedef struct {
    double intermediate_s, down_s;
    int64_t intermediate_bytes, down_bytes;
} moepic_test_device_expert_times;
MOEPIC_API int32_t moepic_test_device_time_experts(moepic_test_device_expert_times* out, int32_t device, uint32_t gate_up_type,
                                                   uint32_t down_type, int64_t n_embd, int64_t granule, int32_t n_tasks, int32_t n_groups,
                                                   double seconds);
/* cdef: end */
