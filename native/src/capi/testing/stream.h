/* Test-only: streamed experts from inside, and routing that follows a recording, for benchmarks with random weights. */
#pragma once
#include "moepic.h"

/* cdef: begin */
/* Experts of every token from now on: ids [n_token, n_moe_layer, k], ascending inside a token and layer, distinct, k the model's; a token
 * at position p uses row p % n_token. guesses: the same shape, prefetched for the predictor next_layer; NULL: no guess. ids NULL ends it.
 * E_ARGUMENT for ids out of range or models whose layers use different numbers of experts. */
MOEPIC_API int32_t moepic_test_force_routing(moepic_context* context, const int32_t* ids, const int32_t* guesses, int64_t n_token);
/* Recounts the residency of a model that streams. E_INTERNAL where it disagrees. */
MOEPIC_API int32_t moepic_test_stream_check(const moepic_model* model);
/* cdef: end */
