/* Test-only: residency, the expert cache, hit curves, and replay over recorded routing, which moepic_gguf/replay.py uses too. */
#pragma once
#include "moepic.h"

/* cdef: begin */
/* A model as these rooms see it: arrays of n_layer MoE layers. */
typedef struct {
    int32_t n_layer;
    int32_t n_used;
    const int32_t* n_expert;
    const int32_t* n_granule;
    const int64_t* granule_bytes;
} moepic_test_shape;

typedef struct {
    int32_t policy;   /* 0 lru, 1 lfu, 2 lcp, 3 lrfu, 4 static, 5 belady */
    int32_t scope;    /* 0 per layer, 1 global */
    int32_t eviction; /* 0 whole, 1 granules, bottoms first */
    int32_t bypass;
    double rho, omega, half_life;
    double granule_omega; /* below 0: derived from the budget */
    int64_t budget_bytes;
    const int64_t* layer_budget; /* [n_layer], or NULL */
    const int32_t* top;          /* [n_layer] granules, or NULL: all */
    const double* profile;       /* [all experts], or NULL: starts cold */
} moepic_test_cache_options;

typedef struct {
    int64_t n_hit, n_partial, n_miss;
    int64_t needed_bytes, demand_bytes, useful_bytes, wasted_bytes, late_bytes;
    double stall_s;
} moepic_test_tally;

typedef struct {
    const int32_t* ids;       /* [n_token, n_layer, n_used], -1: none */
    const int32_t* predicted; /* [n_token, n_layer, n_guess], or NULL */
    int32_t n_token, n_guess, n_warm;
    double miss_bytes_s, prefetch_bytes_s, wait_s, landing_bytes_s, compute_bytes_s;
    const double* window_s; /* [n_layer], or NULL: none */
} moepic_test_trace;

typedef struct {
    int64_t loads, evictions, capacity_bytes;
    char note[256];
} moepic_test_totals;

/* layers [n_layer], token_stall_s [n_token - n_warm] and totals are written. */
MOEPIC_API int32_t moepic_test_cache_replay(moepic_test_tally* layers, double* token_stall_s, moepic_test_totals* totals,
                                            const moepic_test_shape* shape, const moepic_test_trace* trace,
                                            const moepic_test_cache_options* options);
/* The policy `auto`: best receives the index of the candidate that stalls least, stall_s [n_candidates] the stall of each. One budget for
 * all; predictions of the trace count. */
MOEPIC_API int32_t moepic_test_cache_choose(int32_t* best, double* stall_s, const moepic_test_shape* shape, const moepic_test_trace* trace,
                                            const moepic_test_cache_options* candidates, int32_t n_candidates);
/* hits [n_expert of the layer + 1]; concave != 0 gives the concave hull. */
MOEPIC_API int32_t moepic_test_hit_curve(double* hits, const moepic_test_shape* shape, const moepic_test_trace* trace, int32_t layer,
                                         int32_t concave);

/* A cache driven call by call. route writes n_resident and n_kept [n_ids] and how many ids were not -1. */
typedef struct moepic_test_cache moepic_test_cache;
MOEPIC_API int32_t moepic_test_cache_new(moepic_test_cache** made, const moepic_test_shape* shape,
                                         const moepic_test_cache_options* options);
MOEPIC_API void moepic_test_cache_free(moepic_test_cache* cache);
MOEPIC_API int32_t moepic_test_cache_route(moepic_test_cache* cache, int64_t now, int32_t layer, const int32_t* ids, int32_t n_ids,
                                           int32_t* n_resident, int32_t* n_kept, int32_t* n_routed);
MOEPIC_API int32_t moepic_test_cache_release(moepic_test_cache* cache);
/* Every pool keeps `percent` of its slots, rounded down; n_moved is written. */
MOEPIC_API int32_t moepic_test_cache_shrink(moepic_test_cache* cache, int32_t percent, int32_t* n_moved);
/* resident [all experts] granules; counters: loads, evictions, resident bytes, capacity bytes. Recounts everything; E_INTERNAL where it
 * disagrees. */
MOEPIC_API int32_t moepic_test_cache_state(moepic_test_cache* cache, int32_t* resident, int64_t* counters);

/* A bare residency: one pool of n_slot slots for all layers. Slots are named by number and generation. */
typedef struct moepic_test_residency moepic_test_residency;
MOEPIC_API int32_t moepic_test_residency_new(moepic_test_residency** made, const moepic_test_shape* shape, int32_t n_slot);
MOEPIC_API void moepic_test_residency_free(moepic_test_residency* residency);
MOEPIC_API int32_t moepic_test_residency_place(moepic_test_residency* residency, int32_t layer, int32_t expert, int32_t granule,
                                               int32_t* slot, uint32_t* generation);
MOEPIC_API int32_t moepic_test_residency_evict(moepic_test_residency* residency, int32_t layer, int32_t expert, int32_t granule);
MOEPIC_API int32_t moepic_test_residency_pin(moepic_test_residency* residency, int32_t slot, uint32_t generation, int32_t pinned);
/* runs [2 n_granule]: first and count of each; n_run is written. */
MOEPIC_API int32_t moepic_test_residency_runs(moepic_test_residency* residency, int32_t layer, int32_t expert, int32_t* runs,
                                              int32_t* n_run);
/* Recounts; counters: loads, evictions, resident bytes, capacity bytes. */
MOEPIC_API int32_t moepic_test_residency_check(moepic_test_residency* residency, int64_t* counters);
/* cdef: end */
