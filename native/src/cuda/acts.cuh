// Activations as operand B of the products (product.cuh): from memory as they lie there, or staged through shared memory for a whole thread
// block. Both offer, for block `at` of a row (of len weights) and group n of 8 tokens,
//
//   run<len>(n, at, run, b)         codes of the lane's own token 8n + g: dwords c and c + 4 of 32
//   d<len>(n, column, at), s(..)    scale (and d * sum of codes) of token 8n + 2c + column, whose results the lane has
//   sums<subs>(n, at, low, high)    of the own token, sums of codes of sub-blocks 4c .. 4c + 3: bits 0..6 and the rest, as bytes
//   advance<T>(at, n_blocks)        before block `at`, ascending from 0
//
// Tokens beyond the last are the last one again: what they give is never written, and no lane branches.
#pragma once

#include <cstddef>
#include <type_traits>

#include "cuda/types.cuh"
#include "ops/cpu/activations.h"

namespace moepic::device {

// Rows of activations that the tokens of a batch have; no more than 4 GiB of them, so that a lane holds offsets instead of pointers.
struct TokenRows {
    const std::byte* acts;
    uint32_t stride;
    const int32_t* gather;  // token t has row gather[t]; null: row t
    int n_tokens;           // of the batch; at least 1
    __device__ uint32_t offset(int token) const {
        const int t = token < n_tokens ? token : n_tokens - 1;
        return static_cast<uint32_t>(gather ? gather[t] : t) * stride;
    }
};

// Four sums of Act256 stand in the order 0 2 1 3: shifting the second pair by a byte puts bytes of them in order.
__device__ inline uint32_t low_bytes(uint32_t even, uint32_t odd) {
    return (even & 0x007f007fu) | (odd & 0x007f007fu) << 8;
}
__device__ inline uint32_t high_bytes(uint32_t even, uint32_t odd) {
    return ((even >> 7) & 0x00ff00ffu) | ((odd >> 7) & 0x00ff00ffu) << 8;
}
static_assert(127 * 32 < 1 << 13, "a sum is 7 bits and a signed byte");

__device__ inline float element(const float4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <int len>
using ActBlock = std::conditional_t<len == 32, ops::Act32, ops::Act256>;

// Few tokens: a warp reads what it needs when it needs it, out of the first-level cache but for the first warp of an SM.
template <int groups>
class DirectActs {
public:
    static constexpr int kGroups = groups;
    __device__ DirectActs(const TokenRows& rows, int first, Lane lane) : acts_(rows.acts), lane_(lane) {
#pragma unroll
        for (int n = 0; n < groups; ++n) {
            own_[n] = rows.offset(first + 8 * n + lane.g);
            result_[n][0] = rows.offset(first + 8 * n + 2 * lane.c);
            result_[n][1] = rows.offset(first + 8 * n + 2 * lane.c + 1);
        }
    }
    // Nothing to do, but the next block's activations would be loaded so early that registers run out (ptxas 13.0).
    template <class T>
    __device__ void advance(int, int) {
        __syncwarp();
    }
    template <int len>
    __device__ void run(int n, int at, int run, uint32_t (&b)[2]) const {
        const auto* words = reinterpret_cast<const uint32_t*>(of<ActBlock<len>>(own_[n])[at].q) + 8 * run + lane_.c;
        b[0] = __ldg(words);
        b[1] = __ldg(words + 4);
    }
    template <int len>
    __device__ float d(int n, int column, int at) const {
        return __ldg(&of<ActBlock<len>>(result_[n][column])[at].d);
    }
    __device__ float s(int n, int column, int at) const { return __ldg(&of<ops::Act32>(result_[n][column])[at].s); }
    template <int subs>
    __device__ void sums(int n, int at, uint32_t& low, uint32_t& high) const {
        const ops::Act256& block = of<ops::Act256>(own_[n])[at];
        // With 8 sub-blocks, lanes from c = 2 on have minimums of 0 and read the sums of c - 2.
        const auto* pairs =
            reinterpret_cast<const uint32_t*>(subs == 16 ? block.sum16 : block.sum32) + 2 * (subs == 16 ? lane_.c : lane_.c % 2);
        const uint32_t even = __ldg(pairs), odd = __ldg(pairs + 1);
        low = low_bytes(even, odd);
        high = high_bytes(even, odd);
    }
    // For float weights: elements 4 at .. 4 at + 3. Rows of activations are padded to 64 bytes, so the last four may reach beyond the
    // columns.
    __device__ float4 four(int n, int column, int at) const { return __ldg(&of<float4>(result_[n][column])[at]); }

private:
    template <class Block>
    __device__ const Block* of(uint32_t row) const {
        return reinterpret_cast<const Block*>(acts_ + row);
    }
    const std::byte* acts_;
    Lane lane_;
    uint32_t own_[groups], result_[groups][2];
};

// Many tokens: the kStageThreads threads of a block bring 256 weights' worth of all tokens at a time into one of two buffers, the next ones
// already on their way in registers, with one barrier a step. All warps of the block walk through rows of the same length and kind
// together.
//
//   buffer | token: 64 dwords of codes, 4 of low bytes and 4 of high bytes of sums | .. | d [8 blocks][token] | s [8 blocks][token] |
//
// Dwords c and c + 4 of a run stand together, 2c and 2c + 1: one load of 8 bytes. A token's 72 dwords put the tokens of a half warp into
// different banks.
inline constexpr int kStageThreads = 256;

template <int groups>
class StagedActs {
public:
    static constexpr int kGroups = groups, kTokens = 8 * groups;
    static constexpr int kTokenWords = 72, kScales = kTokens * kTokenWords, kBufferWords = kScales + 16 * kTokens;
    static constexpr size_t kSharedBytes = sizeof(uint32_t) * (2 * kBufferWords + kTokens);

    // All threads of the block, which may still be reading what was staged before.
    __device__ StagedActs(const TokenRows& rows, int first, Lane lane, uint32_t* shared)
        : acts_(rows.acts), lane_(lane), shared_(shared), now_(shared) {
        __syncthreads();
        if (thread() < kTokens) offsets()[thread()] = rows.offset(first + thread());
        __syncthreads();
    }

    template <class T>
    __device__ void advance(int at, int n_blocks) {
        constexpr int per_step = kStep / T::kLen;
        if (at % per_step != 0) return;
        const int step = at / per_step;
        if (step == 0) fetch<T>(0, n_blocks);
        now_ = shared_ + step % 2 * kBufferWords;
        store<T>();
        __syncthreads();
        if ((step + 1) * per_step < n_blocks) fetch<T>(step + 1, n_blocks);
    }
    template <int len>
    __device__ void run(int n, int at, int run, uint32_t (&b)[2]) const {
        const int r = len == 32 ? at % 8 : run;
        const uint2 both = *reinterpret_cast<const uint2*>(now_ + (8 * n + lane_.g) * kTokenWords + 8 * r + 2 * lane_.c);
        b[0] = both.x;
        b[1] = both.y;
    }
    template <int len>
    __device__ float d(int n, int column, int at) const {
        return f_bits(now_[kScales + (len == 32 ? at % 8 : 0) * kTokens + 8 * n + 2 * lane_.c + column]);
    }
    __device__ float s(int n, int column, int at) const {
        return f_bits(now_[kScales + (8 + at % 8) * kTokens + 8 * n + 2 * lane_.c + column]);
    }
    template <int subs>
    __device__ void sums(int n, int, uint32_t& low, uint32_t& high) const {
        const uint32_t* four = now_ + (8 * n + lane_.g) * kTokenWords + 64 + (subs == 16 ? lane_.c : lane_.c % 2);
        low = four[0];
        high = four[4];
    }

private:
    static constexpr int kStep = 256, kRounds = kTokens * 64 / kStageThreads;
    static_assert(8 * kTokens <= kStageThreads);

    __device__ static int thread() { return static_cast<int>(threadIdx.x); }
    __device__ uint32_t* offsets() const { return shared_ + 2 * kBufferWords; }
    __device__ uint32_t word(int token, int64_t at) const {
        return __ldg(reinterpret_cast<const uint32_t*>(acts_ + offsets()[token] + at));
    }
    // Thread i brings dword i % 64 of tokens i / 64, + 4, ..; one d (and s) of token and block; and sums of a token's 4 sub-blocks.
    template <class T>
    __device__ void fetch(int step, int n_blocks) {
        const int w = thread() % 64;
        if constexpr (T::kLen == 32) {
            using Block = ops::Act32;
            const int block = 8 * step + w / 8;
            if (block < n_blocks) {
#pragma unroll
                for (int i = 0; i < kRounds; ++i)
                    codes_[i] = word(thread() / 64 + 4 * i, block * sizeof(Block) + offsetof(Block, q) + w % 8 * 4);
            }
            const int scale = 8 * step + thread() % 8;
            if (thread() < 8 * kTokens && scale < n_blocks) {
                d_ = word(thread() / 8, scale * sizeof(Block) + offsetof(Block, d));
                if constexpr (T::kMin) s_ = word(thread() / 8, scale * sizeof(Block) + offsetof(Block, s));
            }
        } else {
            using Block = ops::Act256;
            const int64_t block = step * static_cast<int64_t>(sizeof(Block));
#pragma unroll
            for (int i = 0; i < kRounds; ++i) codes_[i] = word(thread() / 64 + 4 * i, block + offsetof(Block, q) + w * 4);
            if (thread() < kTokens) d_ = word(thread(), block + offsetof(Block, d));
            if constexpr (T::kMin) {
                const int four = thread() % 4;
                if (thread() < 4 * kTokens && 4 * four < T::kSubs) {
                    const int64_t at = block + (T::kSubs == 16 ? offsetof(Block, sum16) : offsetof(Block, sum32)) + 8 * four;
                    even_ = word(thread() / 4, at);
                    odd_ = word(thread() / 4, at + 4);
                }
            }
        }
    }
    template <class T>
    __device__ void store() {
        const int w = thread() % 64;
#pragma unroll
        for (int i = 0; i < kRounds; ++i) now_[(thread() / 64 + 4 * i) * kTokenWords + w / 8 * 8 + w % 4 * 2 + w % 8 / 4] = codes_[i];
        if constexpr (T::kLen == 32) {
            if (thread() < 8 * kTokens) {
                now_[kScales + thread() % 8 * kTokens + thread() / 8] = d_;
                if constexpr (T::kMin) now_[kScales + (8 + thread() % 8) * kTokens + thread() / 8] = s_;
            }
        } else {
            if (thread() < kTokens) now_[kScales + thread()] = d_;
            if constexpr (T::kMin) {
                if (thread() < 4 * kTokens && thread() % 4 * 4 < T::kSubs) {
                    uint32_t* to = now_ + thread() / 4 * kTokenWords + 64 + thread() % 4;
                    to[0] = low_bytes(even_, odd_);
                    to[4] = high_bytes(even_, odd_);
                }
            }
        }
    }

    const std::byte* acts_;
    Lane lane_;
    uint32_t *shared_, *now_;
    uint32_t codes_[kRounds] = {}, d_ = 0, s_ = 0, even_ = 0, odd_ = 0;
};

}  // namespace moepic::device
