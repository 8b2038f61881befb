// Few tokens: a thread block takes a few tiles of one matrix and shares their blocks out over its warps.
//
// Memory is the bound, so what counts is bytes on their way: a small matrix (2048 rows: 128 tiles) occupies a large device only if its rows
// are cut along k as well. A warp asks for kUnitsAhead whole blocks (1 to 3 KB), multiplies, and leaves the float terms of each block in
// shared memory; the next blocks are asked for before the barrier; then a thread per (row, token) runs the chain over the terms in order:
// one or two fma a block, for 8 to 56 blocks of 256 a row, against hundreds of nanoseconds for the bytes. Three blocks of 80 registers
// share an SM, 24 warps: 24 to 80 KB on their way.
#pragma once

#include "cuda/product.cuh"
#include "quant/types.h"

namespace moepic::device {

inline constexpr int kSplitWarps = 8, kSplitThreads = 32 * kSplitWarps;

// A matrix has less than 2^31 rows, columns and blocks, so that indices in kernels are 32 bits wide; bytes are not.
// Rows of a job's group: one of job.n_group equal groups of whole tiles.
__device__ inline int group_rows(const MatmulJob& job) {
    return static_cast<int>(job.w.rows) / static_cast<int>(job.n_group);
}
__device__ inline int n_tiles_of(const MatmulJob& job) {
    return (static_cast<int>(job.w.rows) + ops::kTileRows - 1) / ops::kTileRows;
}
// Activations that a tile meets.
__device__ inline TokenRows rows_of(const MatmulJob& job, int tile, int n_tokens) {
    const size_t group = job.n_group == 1 ? 0 : static_cast<size_t>(tile * ops::kTileRows / group_rows(job)) * job.act_group;
    return {job.acts + group, static_cast<uint32_t>(job.act_stride), nullptr, n_tokens};
}
// A finished sum: + bias, and never a write beyond the last row.
__device__ inline void finish(const MatmulJob& job, int row, int token, float sum) {
    if (row >= job.w.rows) return;
    if (job.bias) sum += job.bias[row];
    float* y = job.y + token * job.y_stride;
    if (job.n_group == 1) {
        y[row] = sum;
    } else {
        y[row / group_rows(job) * job.y_group + row % group_rows(job)] = sum;
    }
}

// Blocks a warp has in hand between two barriers. Terms of all warps' blocks are then at most 32 KiB.
template <class T, int groups>
inline constexpr int kUnitsAhead = T::kLen == 32 && groups * T::kTerms <= 2 ? 4 / (groups * T::kTerms) : 1;
template <class T, int groups>
inline constexpr int kUnits = kSplitWarps * kUnitsAhead<T, groups>;
// Tiles for a thread block: one, or where rows are short as many as give each warp a block.
inline int64_t tiles_per_block(const ops::TiledMatrix& w) {
    const int64_t len = type_info(w.type).block_len, n_blocks = w.cols / len;
    return len == 1 || n_blocks >= kSplitWarps ? 1 : kSplitWarps / n_blocks;
}

inline constexpr size_t kSplitTermBytes = 32 << 10;
// Terms, and where rows are longer than a chunk (one tile) the sums so far.
inline constexpr size_t kSplitSharedBytes = kSplitTermBytes + 16 * ops::kTileRows * sizeof(float);

// Tiles [first_tile, first_tile + n_tiles) for tokens [first_token, first_token + n), n <= 8 * groups. A unit is a block of a tile.
template <class T, int groups>
__device__ __forceinline__ void split_quantized(const MatmulJob& job, int first_tile, int n_tiles, int first_token, int n, int n_tokens) {
    constexpr int units = kUnits<T, groups>, ahead = kUnitsAhead<T, groups>;
    static_assert(units * T::kTerms * 8 * groups * ops::kTileRows * sizeof(float2) <= kSplitTermBytes);
    auto* terms = shared_memory<float2>();  // [unit][term][token][row]
    auto* sums = reinterpret_cast<float*>(shared_memory<std::byte>() + kSplitTermBytes);
    const Lane lane = this_lane();
    const int warp = static_cast<int>(threadIdx.x / 32), width = n * ops::kTileRows;
    const int n_blocks = static_cast<int>(job.w.cols) / T::kLen, total = n_tiles * n_blocks;

    typename T::Raw raw[ahead];
    const auto load = [&](int unit) {
        const int u = unit < total ? unit : total - 1, tile = u / n_blocks, b = u - tile * n_blocks;
        const std::byte* data = job.w.data + static_cast<int64_t>(first_tile + tile) * n_blocks * (T::kBody + T::kEnds);
        return T::load(data + static_cast<int64_t>(b) * T::kBody, data + static_cast<int64_t>(n_blocks) * T::kBody + b * T::kEnds, lane);
    };
#pragma unroll
    for (int i = 0; i < ahead; ++i) raw[i] = load(warp + i * kSplitWarps);

    for (int chunk = 0; chunk < total; chunk += units) {
#pragma unroll
        for (int i = 0; i < ahead; ++i) {
            const int unit = chunk + warp + i * kSplitWarps, tile = unit / n_blocks;
            if (unit >= total) break;
            const DirectActs<groups> x(rows_of(job, first_tile + tile, n_tokens), first_token, lane);
            float2* to = terms + (unit - chunk) * T::kTerms * width + 2 * lane.g;
            multiply<T>(raw[i], x, unit - tile * n_blocks, lane, [&](int term, int g, int j, float p, float q) {
                const int token = 8 * g + 2 * lane.c + j % 2;
                if (token < n) to[(term * n + token) * ops::kTileRows + j / 2] = {p, q};
            });
        }
#pragma unroll
        for (int i = 0; i < ahead; ++i) raw[i] = load(chunk + units + warp + i * kSplitWarps);
        __syncthreads();
        for (int chain = static_cast<int>(threadIdx.x); chain < n_tiles * width; chain += kSplitThreads) {
            const int tile = chain / width, at = chain - tile * width;
            const int row_begin = tile * n_blocks, begin = row_begin > chunk ? row_begin : chunk;
            const int row_end = row_begin + n_blocks, end = row_end < chunk + units ? row_end : chunk + units;
            float acc = begin == row_begin ? 0.0f : sums[at];
            for (int u = (begin - chunk) * T::kTerms; u < (end - chunk) * T::kTerms; ++u) {
                const float2 p = terms[u * width + at];
                acc = __fmaf_rn(p.x, p.y, acc);
            }
            if (end == row_end)
                finish(job, (first_tile + tile) * ops::kTileRows + at % ops::kTileRows, first_token + at / ops::kTileRows, acc);
            else
                sums[at] = acc;
        }
        __syncthreads();
    }
}

// Floats: the chain over k cannot be shared out, so one tile's bytes come through shared memory with all threads' loads in flight, two
// chunks deep, while a thread per (row, token) follows the chain: the latency of fma, 4 cycles a column, is the bound of a small matrix.
template <class T>
__device__ __forceinline__ void split_floats(const MatmulJob& job, int tile, int first_token, int n, int n_tokens) {
    constexpr int kVectors = 2;  // of 16 bytes, per thread and chunk
    constexpr int kChunkBytes = kVectors * 16 * kSplitThreads, chunk_cols = kChunkBytes / T::kBytes;
    static_assert(2 * kChunkBytes <= kSplitTermBytes);
    auto* buffer = shared_memory<std::byte>();
    const int64_t bytes = job.w.cols * T::kBytes;
    const std::byte* data = job.w.data + tile * bytes;
    const int cols = static_cast<int>(job.w.cols), thread = static_cast<int>(threadIdx.x);

    uint4 raw[kVectors];
    const auto load = [&](int chunk) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            const int64_t at = static_cast<int64_t>(chunk) * kChunkBytes + (i * kSplitThreads + thread) * 16;
            raw[i] = at < bytes ? __ldg(reinterpret_cast<const uint4*>(data + at)) : uint4{0, 0, 0, 0};
        }
    };
    const int row = thread % ops::kTileRows, token = thread / ops::kTileRows;
    const TokenRows rows = rows_of(job, tile, n_tokens);
    const auto* x = reinterpret_cast<const float4*>(rows.acts + rows.offset(first_token + token));
    float acc = 0.0f;
    load(0);
    for (int chunk = 0; chunk * chunk_cols < cols; ++chunk) {
        std::byte* now = buffer + chunk % 2 * kChunkBytes;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) reinterpret_cast<uint4*>(now)[i * kSplitThreads + thread] = raw[i];
        load(chunk + 1);
        __syncthreads();  // also keeps writers one chunk from readers: they alternate between two buffers
        const int first = chunk * chunk_cols, count = cols - first < chunk_cols ? cols - first : chunk_cols;
        if (token < n) {
            const auto* w = reinterpret_cast<const typename T::Stored*>(now) + row;
#pragma unroll 2
            for (int k = 0; k < count; k += 4) {
                const float4 v = __ldg(x + (first + k) / 4);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (k + j < count) acc = __fmaf_rn(T::value(w[(k + j) * ops::kTileRows]), element(v, j), acc);
                }
            }
        }
    }
    if (token < n) finish(job, tile * ops::kTileRows + row, first_token + token, acc);
}

// Tiles [first, first + n_tiles) of a job for up to 8 * groups tokens from first_token on, by a whole thread block with kSplitSharedBytes.
// n_tiles as tiles_per_block has it: one, unless their blocks fit one chunk.
template <int groups>
__device__ __forceinline__ void split_block(const MatmulJob& job, int first, int n_tiles, int first_token, int n_tokens) {
    const int n = n_tokens - first_token < 8 * groups ? n_tokens - first_token : 8 * groups;
    with_type(job.w.type, [&](auto t) {
        using T = decltype(t);
        if constexpr (T::kLen == 1) {
            split_floats<T>(job, first, first_token, n, n_tokens);
        } else {
            split_quantized<T, groups>(job, first, n_tiles, first_token, n, n_tokens);
        }
    });
}

}  // namespace moepic::device
