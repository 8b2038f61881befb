// Test-only: the steps of a device library (device/api.h) that are no matrix product, on memory of the host: copied in, run on one stream,
// copied back. And the engine's router, which is no kernel but has a step there.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef MOEPIC_API
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#endif

/* cdef: begin */
/* device is 0: emulated, 1: the first CUDA device. */

/* Where activations go, [rows][bytes of a row] of each kind or null; mask says which are wanted, by bit. */
typedef struct {
    uint32_t mask;
    void *floats, *blocks_32, *blocks_256;
} moepic_test_acts;

/* y[n][stride] = norm(x), or of y itself where x is null. */
MOEPIC_API int moepic_test_device_norm(int device, const float* x, float* y, int64_t n, int64_t stride, int64_t cols, const float* weight,
                                       const float* bias, float eps, float factor, const moepic_test_acts* acts);

/* op 0: y *= a, 1: y = fma(a, x, y), 2: y += x, 3: y *= x, 4: sigmoid */
MOEPIC_API int moepic_test_device_each(int device, int op, float* y, float a, const float* x, int64_t n);

/* out [n][stride], or in place of gate where out is null */
MOEPIC_API int moepic_test_device_glu(int device, int kind, float* gate, const float* up, float* out, int64_t n, int64_t stride,
                                      int64_t cols, const moepic_test_acts* acts);

/* As HeadsJob; q, k and v in and out. */
typedef struct {
    int64_t n, n_head, n_head_kv, head_dim_k, head_dim_v;
    const float* gated_q;
    float *q, *k, *v;
    int copies_values, value_norm, whole_norm, head_norm, norm_after_rope;
    const float *q_norm, *k_norm; /* of a head, or of a row with whole_norm; or null */
    float eps;
    int rotates;
    const float* angles;
    int64_t n_rot;
    int neox;
    const float* q_scale;
} moepic_test_device_heads_job;
MOEPIC_API int moepic_test_device_heads(int device, const moepic_test_device_heads_job* job);

/* As LatentHeadsJob; q and k in and out. */
typedef struct {
    int64_t n, n_head, plain, kv_rank, n_rot;
    const float* raw;
    float *q, *k;
    const float* k_norm;
    float eps;
    const float* angles;
    int neox;
    moepic_test_acts acts;
} moepic_test_device_latent_job;
MOEPIC_API int moepic_test_device_latent_heads(int device, const moepic_test_device_latent_job* job);

/* A KV cache as moepic_test_kv has it. */
typedef struct {
    int type;
    int64_t n_head_kv, head_dim_k, head_dim_v, capacity;
    void *keys, *values;
} moepic_test_device_kv;
MOEPIC_API int moepic_test_device_kv_store(int device, const moepic_test_device_kv* kv, int64_t first_pos, int64_t n, const float* k,
                                           int64_t k_stride, const float* v, int64_t v_stride);

/* A negative window is chunks of so many positions. The launch is made for positions from slack_below before first_pos to slack_above
   behind it. with_scratch 0: the device must do without. split (may be null): whether it asked for scratch. */
MOEPIC_API int moepic_test_device_attention(int device, const moepic_test_device_kv* kv, const float* q, float* out, int64_t n,
                                            int64_t n_head, int64_t first_pos, int64_t slack_below, int64_t slack_above, float scale,
                                            int64_t window, const float* sinks, int with_scratch, int* split);

/* Tokens [0, cut) lead from `from` (null: zeros) to `middle`, [cut, n) on to `to`; cut 0: one leg, without a middle. States as in
   recurrence.h. */
MOEPIC_API int moepic_test_device_conv(int device, float* x, int64_t n, int64_t cut, const float* taps, int64_t n_taps, int64_t n_channels,
                                       int silu, const float* from, float* middle, float* to);

/* channels [n][n_channels] in and out; alpha may be null */
MOEPIC_API int moepic_test_device_delta_gates(int device, int64_t n, int64_t n_channels, int64_t n_head_k, int64_t n_head_v,
                                              int64_t head_dim_k, float* channels, float length_eps, const float* raw_beta,
                                              const float* alpha, const float* rate, const float* alpha_bias, float* beta, float* decay);

/* States are state_offset floats and then a matrix per value head. */
typedef struct {
    int64_t n, cut, n_channels, n_head_k, n_head_v, head_dim_k, head_dim_v;
    int tiled_value_heads;
    const float *channels, *beta, *decay;
    float* out; /* [n][n_head_v * head_dim_v] */
    int64_t state_offset;
    const float* from;
    float *middle, *to;
} moepic_test_device_rule_job;
MOEPIC_API int moepic_test_device_delta_rule(int device, const moepic_test_device_rule_job* job);

/* device -1: the engine's router with the kernels of `isa`. logits in and out. */
typedef struct {
    int64_t n, n_expert, k;
    int scoring; /* 1 softmax, 2 sigmoid, 3 softmax over the selected, 255 sparse mixer */
    int64_t n_group, n_group_used;
    int groups_by_best, renormalise;
    float router_scale;
    const float *selection_bias, *expert_scale;
    float* logits;
    int32_t* ids;
    float* weights;
} moepic_test_route_job;
MOEPIC_API int moepic_test_route(int device, int isa, const moepic_test_route_job* job);

/* device::TaskListJob; addresses are only copied. The host is told the ids in the letter that follows n_written others, of a ring. */
typedef struct {
    int64_t n, k, n_granules, n_expert;
    const int32_t* ids;
    const float* weights; /* or null */
    const uint64_t* granules;
    uint64_t* task_data; /* [n k n_granules], as tasks */
    int32_t* tasks;      /* [n k n_granules][4]: granule, first entry, number of entries, first row */
    int32_t* entry_token;
    float* entry_weight; /* or null */
    int32_t* token_entry;
    int32_t* told;
    uint32_t flag;      /* of the letter */
    uint64_t n_written; /* before, and after */
} moepic_test_task_list_job;
MOEPIC_API int moepic_test_device_list_tasks(int device, moepic_test_task_list_job* job);
/* cdef: end */
