// Ops on single vectors: norms, rope, activations, softmax, sums. Entries of the Kernels table (ops/ops.h says what each computes).
// Included only by sources that are compiled once per instruction set.
#pragma once

#include <cstdint>

#include "ops/ops.h"

namespace moepic::ops::MOEPIC_ISA {

void rms_norm(const float* x, const float* weight, float eps, float* y, int64_t n);
void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* y, int64_t n);
void rope(float* head, const float* cos_sin, int64_t n_rot, RopePairing pairing);
void glu(GluKind kind, const float* gate, const float* up, float* out, int64_t n);
void softmax(float* x, int64_t n);
void sigmoid(float* x, int64_t n);
void add(float* y, const float* x, int64_t n);
void multiply(float* y, const float* x, int64_t n);
void scale_add(float* y, float a, const float* x, int64_t n);
void scale(float* y, float a, int64_t n);
void soft_cap(float* x, float cap, int64_t n);

void exp_each(float* x, int64_t n);  // in place; not in the table, for the tests of math.h

}  // namespace moepic::ops::MOEPIC_ISA
