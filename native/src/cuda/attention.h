#pragma once

#include "device/api.h"

namespace moepic::device {

size_t attention_scratch(const ops::KvView& kv, int64_t n, int64_t n_head);
int32_t attention(const AttentionJob& job, Stream stream);

}  // namespace moepic::device
