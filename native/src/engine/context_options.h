// What a context is made of; plain data, so that loading can set its memory aside before there is one.
#pragma once

#include <cstdint>

#include "ops/ops.h"

namespace moepic {

struct ContextOptions {
    int64_t n_ctx = 0;    // 0: min(trained, 4096)
    int64_t n_batch = 0;  // 0: 512
    int n_threads = 0;
    ops::KvType kv_type = ops::KvType::f16;
};

}  // namespace moepic
