/* Test-only: what granules cost the CPU lane, as measured. */
#pragma once
#include "moepic.h"

/* cdef: begin */
/* expected_s [n]: what granule i of bytes[i], shared by n_tokens[i], was believed to take before it took seconds[i] (below 0: it was only
 * asked about). */
MOEPIC_API int32_t moepic_test_cpu_cost(double* expected_s, double bytes_s, double most_bytes_s, const int64_t* bytes,
                                        const int32_t* n_tokens, const double* seconds, int32_t n);
/* cdef: end */
