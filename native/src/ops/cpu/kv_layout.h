// How keys and values lie in memory, for every processor. Keys and values of a layer are separate arrays, each [n_head_kv][capacity / 16]
// blocks; a block holds 16 positions of one head.
//
//   keys, f16      channel 0: p0 p1 .. p15 | channel 1: p0 .. p15 | ..            [head_dim][16] halves; a lane is a position
//   values, f16    unit 0: p0: c0 c1 .. c15 | p1: c0 .. c15 | .. p15 | unit 1 ..  [units][16][16] halves; a lane is a channel, 16 per unit
//   keys, q8_0     group of 32 channels: 16 scales (half, one per position) | [32 channels][16 positions] int8
//   values, q8_0   group of 32 channels: 16 scales (half, one per position) | [2 units][16 positions][16 channels] int8
//
// f16 blocks are padded to a multiple of 16 channels (a value's padding is zero and never reaches the output). Bytes of a block: 32 per
// channel, or 544 per 32 channels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace moepic::ops {

inline constexpr int64_t kKvGroup = 32;        // channels that share a q8_0 scale
inline constexpr int64_t kKvGroupBytes = 544;  // 16 scales and 32 x 16 codes
inline constexpr int64_t kKvUnit = 16;         // channels of a value that are one vector
static_assert(kKvGroupBytes == 2 * kKvBlock + kKvGroup * kKvBlock);

// Bytes of one block of keys or of values.
constexpr int64_t kv_block_bytes(KvType type, int64_t head_dim) {
    if (type == KvType::q8_0) return head_dim / kKvGroup * kKvGroupBytes;
    return (head_dim + kKvUnit - 1) / kKvUnit * kKvUnit * kKvBlock * 2;
}

// The block of a head that holds a position, or would hold it again after `capacity` more.
inline std::byte* kv_block(std::byte* data, KvType type, int64_t head_dim, int64_t capacity, int64_t head, int64_t pos) {
    const int64_t blocks = capacity / kKvBlock;
    return data + (head * blocks + pos / kKvBlock % blocks) * kv_block_bytes(type, head_dim);
}

}  // namespace moepic::ops
