// Test-only: the matrix steps of a device library (device/api.h) on memory of the host: copied in, run on one stream, copied back.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef MOEPIC_API
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#endif

/* cdef: begin */
/* device is 0: emulated, 1: the first CUDA device. type is a GGUF type id. */

/* n rows x[n][stride] to activations; mask has bit 0 for floats, 1 for blocks of 32, 2 for blocks of 256. out of each kind asked for:
   n rows of moepic_test_matmul_bytes' size, in and out (what is not written stays). */
MOEPIC_API int moepic_test_device_quantize(int device, uint32_t mask, const float* x, int64_t n, int64_t stride, int64_t cols, void* floats,
                                           void* blocks_32, void* blocks_256);

typedef struct {
    uint32_t type;
    int64_t rows, cols;
    const void* tiles;
    const void* acts; /* n_group times n_tokens rows, a group's after another's */
    float* y;         /* [n_tokens][y_stride], in and out: group h writes its rows at y_group * h */
    int64_t y_stride;
    const float* bias; /* [rows] or null */
    int64_t n_group, y_group;
} moepic_test_device_matmul_job;
MOEPIC_API int moepic_test_device_matmul(int device, const moepic_test_device_matmul_job* jobs, int n_jobs, int64_t n_tokens);

/* Granules of experts, for intermediates and down. Bytes of a granule: gate at 0, up, down, biases (0: none). */
typedef struct {
    int64_t n_embd, granule, n_granules;
    uint32_t gate_type, up_type, down_type;
    int64_t up_offset, down_offset, gate_bias_offset, up_bias_offset, granule_bytes;
    const void* granules; /* [n_tasks][granule_bytes], one per task */
    int n_tasks;
    const int32_t* tasks; /* [n_tasks][4]: granule, first entry, number of entries, first row of few */
    int n_runs;
    const int32_t* runs; /* [n_runs][2]: first task, number of tasks; 0 runs: down as of few tokens */
    int64_t n_tokens, n_entries;
    const float* x; /* [n_tokens][n_embd] */
    const int32_t* entry_token;
    const float* entry_weight; /* or null */
    int glu;
    void* intermediate; /* [n_entries][n_granules] rows, in and out */
    float* partials;    /* [n_rows][n_embd], in and out */
    int64_t n_rows;
} moepic_test_device_expert_job;
MOEPIC_API int moepic_test_device_experts(int device, const moepic_test_device_expert_job* job);

/* Fields of device::ReduceJob; x and shared_x may be the same. */
typedef struct {
    int64_t n, n_embd, k;
    float *x, *shared_x;
    float residual_scale;
    const int32_t* token_entry;
    const int32_t* ids;
    const float* weights;
    const float* down_bias;
    int64_t n_expert;
    const float* partials;
    int64_t n_rows;
    const int32_t* rows;
    int64_t n_row_numbers;
    int64_t n_granules;
    const float* shared_partials;
    int64_t n_shared_rows, shared_granules;
    int32_t first_shared;
    const float* shared_weight;
} moepic_test_device_reduce_job;
MOEPIC_API int moepic_test_device_reduce(int device, const moepic_test_device_reduce_job* job);
/* cdef: end */
