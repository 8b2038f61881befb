/* Test-only: the thread pool and the granule rule. */
#pragma once
#include "moepic.h"

/* cdef: begin */
/* Runs `rounds` jobs, of n_tasks and of n_few in turn, on one pool of n_threads; counts[i] grows by one per run of task i. With `sleep_us`
 * some tasks nap, so that workers are late for later jobs. */
MOEPIC_API int32_t moepic_test_pool(int32_t n_threads, int64_t n_tasks, int64_t n_few, int64_t rounds, int32_t sleep_us, int64_t* counts);
MOEPIC_API int64_t moepic_test_granule(int64_t n_ff, uint32_t down_type);
/* cdef: end */
