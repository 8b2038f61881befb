// Test-only: the order of a forward pass over the steps of an emulated device, for comparison with the CPU's.
#pragma once

#include <stdint.h>

#include "moepic.h"

/* cdef: begin */
/* Logits of the last n_logits of n tokens, [n_logits][n_vocab], in batches of at most n_batch, by DeviceSteps on an emulated device. The
   feed-forward is the CPU's: what it reads and adds to is brought to the host and back. The model has to be resident. */
MOEPIC_API int moepic_test_device_pass(moepic_model* model, int kv_type, int64_t n_ctx, int64_t n_batch, const int32_t* tokens, int64_t n,
                                       int64_t n_logits, float* logits);
/* cdef: end */
