/* Test-only: the trial that finds out, by wall time, whether something pays. */
#pragma once
#include "moepic.h"

/* cdef: begin */
typedef struct {
    double cost;
    int32_t is_on, is_trying, n_switched_off;
} moepic_test_verdict;

/* Runs a trial over n tokens: `seconds` and `missing_bytes` [n] of each without the thing, `extra_s` [n] what having it on adds to that
 * token. verdicts [n + 1]: before each token, and at last. */
MOEPIC_API int32_t moepic_test_trial(moepic_test_verdict* verdicts, const double* seconds, const double* missing_bytes,
                                     const double* extra_s, int32_t n);
/* cdef: end */
