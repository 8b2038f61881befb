// Keys and values of past positions (kv_layout.h), and causal attention over them. Entries of the Kernels table; KvView and AttentionJob
// are in ops/ops.h. Included only by sources that are compiled once per instruction set.
#pragma once

#include "ops/cpu/kv_layout.h"

namespace moepic::ops::MOEPIC_ISA {

void kv_store(const KvView& kv, int64_t pos, const float* k, const float* v);
void attention(const AttentionJob& job);
void attention_join(const AttentionJob& job);

}  // namespace moepic::ops::MOEPIC_ISA
