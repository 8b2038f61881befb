// The loops around a matmul kernel: chunks of tiles, groups of tokens, and what happens to a finished sum. The same for every weight type;
// a type brings a kernel class Q with
//
//   Q::kShape                                    its TileShape
//   Q::block<tiles, n>(body, ends, x, b, acc)    adds block b of some tiles for n tokens; body[i], ends[i]: the block in tile i;
//                                                x[t]: activations of token t; acc[i][t]: a lane is a row
//
// Weights are unpacked once per group of tokens, in registers, and meet the tokens there. That needs no scratch panel, and the unpacking
// runs on the ports that the multiplier leaves idle.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cpu/math.h"
#include "ops/cpu/simd.h"
#include "ops/cpu/tiles.h"
#include "ops/ops.h"

namespace moepic::ops::MOEPIC_ISA {

// Tiles and tokens that share what was unpacked and broadcast: as many as sums fit in registers. 2 x 6 on AVX-512 leaves 20 of 32
// registers for float (or sub-block) sums, 2 columns of codes and 1 activation. AVX2 has 16 half as wide; there memory takes the rest.
#if MOEPIC_SIMD_AVX512
inline constexpr int kTileGroup = 2, kTokenGroup = 6;
#else
inline constexpr int kTileGroup = 1, kTokenGroup = 4;
#endif

// Tiles of a chunk stay in L2 while all groups of tokens pass over them.
inline constexpr int64_t kChunkBytes = 192 << 10;

// How far ahead of the block at work its successors are asked for, in bytes. Blocks are read in jumps (high bits, then low bits), which the
// hardware's prefetcher follows badly.
inline constexpr int64_t kPrefetch = 12288;

// A dword column of a body, and one of the halves among the ends.
inline I16x column(const std::byte* body, int i) {
    return i_load(body + i * kColumn);
}

inline F16x half_column(const std::byte* ends, int i) {
    return f_load_half(reinterpret_cast<const uint16_t*>(ends + i * 2 * kTileRows));
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

// The tiles [tile, tile + tiles) for the tokens [token, token + n) whose activations are at x.
template <class Q, int tiles, int n>
void run_tiles(const MatmulJob& job, int64_t tile, int64_t token, const std::byte* const (&x)[n]) {
    const int64_t n_blocks = job.w.cols / Q::kShape.len;
    constexpr int step = Q::kShape.body + Q::kShape.ends;
    const int64_t stride = n_blocks * step;
    const std::byte *body[tiles], *ends[tiles], *ahead = job.w.data + tile * stride + kPrefetch;
    F16x acc[tiles][n];
    for (int i = 0; i < tiles; ++i) {
        body[i] = job.w.data + (tile + i) * stride;
        ends[i] = body[i] + n_blocks * Q::kShape.body;
        for (int t = 0; t < n; ++t) acc[i][t] = f_set(0.0f);
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
        // As many bytes as a block has, ends included, so that nothing of the tile is left out. Floats are read straight on: no need.
        if constexpr (n <= 2 && Q::kShape.len > 1) {
            for (int i = 0; i < tiles; ++i)
                for (int at = 0; at < step; at += kColumn) __builtin_prefetch(ahead + i * stride + at);
            ahead += step;
        }
        Q::template block<tiles, n>(body, ends, x, b, acc);
        for (int i = 0; i < tiles; ++i) {
            body[i] += Q::kShape.body;
            ends[i] += Q::kShape.ends;
        }
    }
    for (int i = 0; i < tiles; ++i)
        for (int t = 0; t < n; ++t) finish(job, tile + i, token + t, acc[i][t]);
}

template <int n>
inline void find_acts(const MatmulJob& job, int64_t token, const std::byte* (&x)[n]) {
    for (int t = 0; t < n; ++t) {
        const int64_t row = job.gather ? job.gather[token + t] : token + t;
        x[t] = job.acts + static_cast<size_t>(row) * job.act_stride;
    }
}

// n tokens from `token` on over the tiles [first, last).
template <class Q, int tiles, int n>
void run_group(const MatmulJob& job, int64_t token, int64_t first, int64_t last) {
    const std::byte* x[n];
    find_acts(job, token, x);
    int64_t tile = first;
    if constexpr (tiles > 1) {
        for (; tile + tiles <= last; tile += tiles) run_tiles<Q, tiles, n>(job, tile, token, x);
    }
    for (; tile < last; ++tile) run_tiles<Q, 1, n>(job, tile, token, x);
}

// All tokens from `token` on: groups of n, then what is left in one smaller group.
template <class Q, int tiles, int n, int tiles_of_one>
void run_tokens(const MatmulJob& job, int64_t token, int64_t first, int64_t last) {
    constexpr int together = n > 1 ? tiles : tiles_of_one;
    for (; token + n <= job.n_tokens; token += n) run_group<Q, together, n>(job, token, first, last);
    if constexpr (n > 1) {
        if (token < job.n_tokens) run_tokens<Q, tiles, n - 1, tiles_of_one>(job, token, first, last);
    }
}

// `tiles` tiles meet up to n tokens at a time; one token alone meets `tiles_of_one`: memory is the bound then, and one stream of it is the
// easiest to follow, unless the arithmetic is a single chain that must be shared out over tiles.
template <class Q, int tiles, int n, int tiles_of_one = 1>
void run_matmul(const MatmulJob& job) {
    const int64_t stride = job.w.cols / Q::kShape.len * (Q::kShape.body + Q::kShape.ends);
    const int64_t fit = kChunkBytes / stride / tiles * tiles;
    const int64_t chunk = job.n_tokens <= n ? job.tile_end : fit > tiles ? fit : tiles;
    for (int64_t first = job.tile_begin; first < job.tile_end; first += chunk) {
        const int64_t last = first + chunk < job.tile_end ? first + chunk : job.tile_end;
        run_tokens<Q, tiles, n, tiles_of_one>(job, 0, first, last);
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
