// From router logits to the experts of a token and their weights. Pure arithmetic.
#pragma once

#include <cstdint>

#include "model/config.h"
#include "ops/ops.h"

namespace moepic {

// logits: [n_expert], overwritten by scores. ids, weights: [k], ids ascending, because partial results are summed in that order.
// selection_bias: [n_expert], added to the scores for the choice only, or null. Of equal scores the lower id wins. NaN logits lose against
// numbers, as -inf does.
void route_token(const Config& config, const LayerConfig& layer, const ops::Kernels& kernels, const float* selection_bias, float* logits,
                 int32_t* ids, float* weights) noexcept;

}  // namespace moepic
