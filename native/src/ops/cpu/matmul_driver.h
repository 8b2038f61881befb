// The loops around a matmul kernel: chunks of tiles, groups of tokens, and what happens to a finished sum. The same for every weight type;
// a type brings a kernel class Q with
//
//   Q::kShape                                    its TileShape
//   Q::block<n>(body, ends, x, b, acc)           adds block b of 16 rows for n tokens: acc[t] is lane = row, x[t] the token's activations
//
// Weights are unpacked once per group of tokens, in registers, and meet up to 8 tokens there. That needs no scratch panel: on AVX-512 the
// dot product takes an activation dword as a broadcast memory operand, two per cycle, which is also the rate of the multiplier, and the
// unpacking runs on the ports that the multiplier leaves idle.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cpu/math.h"
#include "ops/cpu/simd.h"
#include "ops/cpu/tiles.h"
#include "ops/ops.h"

namespace moepic::ops::MOEPIC_ISA {

// Tokens that share an unpacked block: as many as accumulators fit in registers (32 of 64 bytes, 16 of 32 with two per value, or memory).
#if MOEPIC_SIMD_AVX512
inline constexpr int kTokenGroup = 8;
#else
inline constexpr int kTokenGroup = 4;
#endif

// Tiles of a chunk stay in L2 while all groups of tokens pass over them.
inline constexpr int64_t kChunkBytes = 192 << 10;

template <class Q, int n>
inline void run_tile(const std::byte* tile, int64_t n_blocks, const std::byte* const (&x)[n], F16x (&acc)[n]) {
    const std::byte* ends = tile + n_blocks * Q::kShape.body;
    for (int t = 0; t < n; ++t) acc[t] = f_set(0.0f);
    for (int64_t b = 0; b < n_blocks; ++b) Q::template block<n>(tile + b * Q::kShape.body, ends + b * Q::kShape.ends, x, b, acc);
}

// A finished sum of 16 rows for one token: + bias, + what was there, and never a write beyond the last row.
inline void finish(const MatmulJob& job, int64_t tile, int64_t token, F16x sum) {
    const int64_t row = tile * kTileRows, left = job.w.rows - row;
    float* y = job.y + token * job.y_stride + row;
    if (left >= kTileRows) {
        if (job.bias) sum = sum + f_load(job.bias + row);
        if (job.accumulate) sum = f_load(y) + sum;
        f_store(y, sum);
    } else {
        if (job.bias) sum = sum + f_load_some(job.bias + row, left, 0.0f);
        if (job.accumulate) sum = f_load_some(y, left, 0.0f) + sum;
        f_store_some(y, left, sum);
    }
}

// n tokens from `token` on over the tiles [first, last).
template <class Q, int n>
void run_group(const MatmulJob& job, int64_t token, int64_t first, int64_t last) {
    const int64_t n_blocks = job.w.cols / Q::kShape.len;
    const int64_t stride = n_blocks * (Q::kShape.body + Q::kShape.ends);
    const std::byte* x[n];
    for (int t = 0; t < n; ++t) {
        const int64_t row = job.gather ? job.gather[token + t] : token + t;
        x[t] = job.acts + static_cast<size_t>(row) * job.act_stride;
    }
    for (int64_t tile = first; tile < last; ++tile) {
        F16x acc[n];
        run_tile<Q, n>(job.w.data + tile * stride, n_blocks, x, acc);
        for (int t = 0; t < n; ++t) finish(job, tile, token + t, acc[t]);
    }
}

template <class Q>
void run_matmul(const MatmulJob& job) {
    const int64_t stride = job.w.cols / Q::kShape.len * (Q::kShape.body + Q::kShape.ends);
    const int64_t fit = kChunkBytes / stride;
    const int64_t chunk = job.n_tokens <= kTokenGroup && (job.n_tokens & (job.n_tokens - 1)) == 0 ? job.tile_end : fit > 1 ? fit : 1;
    for (int64_t first = job.tile_begin; first < job.tile_end; first += chunk) {
        const int64_t last = first + chunk < job.tile_end ? first + chunk : job.tile_end;
        int64_t token = 0;
        const auto left = [&] { return job.n_tokens - token; };
        for (; left() >= kTokenGroup; token += kTokenGroup) run_group<Q, kTokenGroup>(job, token, first, last);
        if constexpr (kTokenGroup > 4) {
            if (left() >= 4) run_group<Q, 4>(job, token, first, last), token += 4;
        }
        if (left() >= 2) run_group<Q, 2>(job, token, first, last), token += 2;
        if (left() >= 1) run_group<Q, 1>(job, token, first, last);
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
