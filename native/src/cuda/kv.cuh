// Blocks of keys or values of one layer, as ops/cpu/kv_layout.h draws them. What depends on the type of the cache is worked out by
// launchers.
#pragma once

#include "cuda/math.cuh"
#include "cuda/simt.h"
#include "ops/cpu/kv_layout.h"

namespace moepic::device {

struct KvBlocks {
    std::byte* data;
    int64_t n_blocks, block_bytes;  // of a head; of a block

    // The block of a position; those of one chunk follow each other.
    __device__ std::byte* at(int64_t head, int64_t pos) const {
        return data + (head * n_blocks + pos / ops::kKvBlock % n_blocks) * block_bytes;
    }
};

inline KvBlocks key_blocks(const ops::KvView& kv) {
    return {kv.keys, kv.capacity / ops::kKvBlock, ops::kv_block_bytes(kv.type, kv.head_dim_k)};
}
inline KvBlocks value_blocks(const ops::KvView& kv) {
    return {kv.values, kv.capacity / ops::kKvBlock, ops::kv_block_bytes(kv.type, kv.head_dim_v)};
}

}  // namespace moepic::device
