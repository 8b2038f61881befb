// Mixers whose memory of the past is a state of fixed size: a short causal convolution and the gated delta rule. Entries of the Kernels
// table; the jobs are in ops/ops.h. Included only by sources that are compiled once per instruction set.
#pragma once

#include "ops/ops.h"

namespace moepic::ops::MOEPIC_ISA {

void causal_conv(const CausalConvJob& job);
void delta_rule(const DeltaRuleJob& job);

}  // namespace moepic::ops::MOEPIC_ISA
