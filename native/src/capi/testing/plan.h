/* Test-only in name: the planner, for pytest and for moepic_gguf/planner.py. */
#pragma once
#include "moepic.h"

/* cdef: begin */
typedef struct {
    double link, cpu, together, device, cpu_sync_s; /* plan/problem.h: bytes per second, seconds */
    int64_t budget_bytes;
    int32_t n_layer, n_used, n_token;
    const int32_t* n_expert;      /* [n_layer] */
    const int32_t* n_granule;     /* [n_layer] */
    const int64_t* granule_bytes; /* [n_layer] */
    const double* compute_s;      /* [n_layer] */
    const double* window_s;       /* [n_layer] */
    const double* recall;         /* [n_layer] */
    const int32_t* cuts;          /* legal tops of all layers, one after another */
    const int32_t* n_cut;         /* [n_layer] */
    const double* hits;           /* hit curves of all layers, n_expert + 1 values each */
    const int32_t* routing;       /* [n_token, n_layer, n_used]; NULL where n_token is 0 */
} moepic_test_problem;

typedef struct {
    int64_t bytes;
    int32_t top, slots;
    double theta, miss_bytes, stall_s;
} moepic_test_layer_plan;

typedef struct {
    int64_t bytes;
    double objective_s, stall_s, link_share, link_only_s, both_s;
    int32_t rounds;
} moepic_test_plan_totals;

/* mode: 0 auto, 1 paper, 2 uniform, 3 fixed (tops of `top` granules), 4 none, 5 auto by one sort of worths, 6: evaluates `resident` as
 * given. resident [all experts] granules: written by modes 0 and 5, read by 6, may be NULL for the others. layers [n_layer] and totals are
 * written. */
MOEPIC_API int32_t moepic_test_plan(moepic_test_layer_plan* layers, int32_t* resident, moepic_test_plan_totals* totals,
                                    const moepic_test_problem* problem, int32_t mode, int32_t top);
/* cdef: end */
