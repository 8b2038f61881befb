/* Test-only: the predictor and its switch. */
#pragma once
#include "moepic.h"

/* cdef: begin */
typedef struct {
    int64_t n_guessed, n_used, n_right, useful_bytes, wasted_bytes, late_bytes;
    double saved_s, lost_s, recall;
    int32_t is_on, n_switched_off;
} moepic_test_score;

typedef struct moepic_test_predictor moepic_test_predictor;
/* source: 0 none, 1 previous_token, 2 next_layer. */
MOEPIC_API int32_t moepic_test_predictor_new(moepic_test_predictor** made, int32_t n_layer, int32_t source, double half_life, int32_t trial,
                                             int32_t pause);
MOEPIC_API void moepic_test_predictor_free(moepic_test_predictor* predictor);
MOEPIC_API int32_t moepic_test_predictor_foretell(moepic_test_predictor* predictor, int32_t layer, const int32_t* ids, int32_t n_ids);
/* ids must have room for n_room; n_ids and should_prefetch are written. */
MOEPIC_API int32_t moepic_test_predictor_guess(moepic_test_predictor* predictor, int32_t layer, int32_t* ids, int32_t n_room,
                                               int32_t* n_ids, int32_t* should_prefetch);
MOEPIC_API int32_t moepic_test_predictor_observe(moepic_test_predictor* predictor, int32_t layer, const int32_t* used, int32_t n_used,
                                                 int64_t useful_bytes, int64_t wasted_bytes, int64_t late_bytes, double saved_s,
                                                 double lost_s);
MOEPIC_API void moepic_test_predictor_forget(moepic_test_predictor* predictor);
MOEPIC_API int32_t moepic_test_predictor_score(moepic_test_predictor* predictor, int32_t layer, moepic_test_score* score);
/* cdef: end */
