// One tile of weights times groups of 8 tokens, by one warp on the int8 tensor cores, with the float chain of ops/cpu/tiles.h.
//
// A result of the product lies with the lane 4 g + c: of group n, rows 2g and 2g + 1 and tokens 8n + 2c and 8n + 2c + 1,
//
//   i = 0: row 2g, token 2c    1: row 2g, token 2c + 1    2: row 2g + 1, token 2c    3: row 2g + 1, token 2c + 1
//
// and the operand B it brings is that of token 8n + g. Integers are exact, so a block of weights gives each (row, token) one or two float
// terms a b, in the order of tiles.h; the sum is acc = fma(a, b, acc) over them, blocks ascending. Whoever calls decides where the chain
// runs: in the lane's registers when a warp walks a whole row (sum_tile), or elsewhere when blocks of a row are shared out (matmul.cuh).
#pragma once

#include "cuda/acts.cuh"

namespace moepic::device {

// fold(term, n, i, a, b) for the terms of block `at`, in order.
template <class T, class X, class Fold>
__device__ __forceinline__ void multiply_32(const typename T::Raw& raw, const X& x, int at, Lane lane, Fold fold) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = T::code(raw, 0, i, lane);
#pragma unroll
    for (int n = 0; n < X::kGroups; ++n) {
        uint32_t b[2];
        x.template run<32>(n, at, 0, b);
        int32_t sum[4] = {};
        mma_s8(sum, a, b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            fold(0, n, i, T::d(raw, i / 2) * x.template d<32>(n, i % 2, at), static_cast<float>(sum[i]));
            if constexpr (T::kMin) fold(1, n, i, T::min(raw, i / 2), x.s(n, i % 2, at));
        }
    }
}

// sum over sub-blocks of minimum * sum of activations: a product as well, with sums of up to 13 bits in two halves of 7 and 6.
template <class T, class X, class Fold>
__device__ __forceinline__ void multiply_mins(const typename T::Raw& raw, const X& x, int at, Lane lane, Fold fold) {
    const uint32_t a[2] = {T::mins(raw, 0, lane), T::mins(raw, 1, lane)};
#pragma unroll
    for (int n = 0; n < X::kGroups; ++n) {
        uint32_t low, high;
        x.template sums<T::kSubs>(n, at, low, high);
        int32_t sum[4] = {}, sum_high[4] = {};
        mma_s8(sum, a, low);
        mma_s8(sum_high, a, high);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            fold(0, n, i, T::min(raw, i / 2) * x.template d<256>(n, i % 2, at), static_cast<float>(-(sum[i] + sum_high[i] * 128)));
        }
    }
}

template <class T, class X, class Fold>
__device__ __forceinline__ void multiply_256(const typename T::Raw& raw, const X& x, int at, Lane lane, Fold fold) {
    if constexpr (T::kMin) multiply_mins<T>(raw, x, at, lane, fold);
    constexpr int parts = T::kSubs / 8;  // of a run
    uint32_t scales[2][T::kSubs / 4];
    T::scales(raw, 0, scales[0]);
    T::scales(raw, 1, scales[1]);
    int32_t sum[X::kGroups][4] = {};
#pragma unroll
    for (int run = 0; run < 8; ++run) {
        if constexpr (X::kGroups > 1) __syncwarp();  // keeps the loads of all runs from being moved here: registers would run out
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = T::code(raw, run, i, lane);
#pragma unroll
        for (int n = 0; n < X::kGroups; ++n) {
            uint32_t b[2];
            x.template run<256>(n, at, run, b);
#pragma unroll
            for (int part = 0; part < parts; ++part) {
                int32_t dot[4] = {};
                if constexpr (parts == 1)
                    mma_s8(dot, a, b);
                else
                    mma_s8(dot, {a[2 * part], a[2 * part + 1]}, b[part]);
                const int s = parts * run + part;
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[n][i] += dot[i] * static_cast<int8_t>(scales[i / 2][s / 4] >> (8 * (s % 4)));
            }
        }
    }
#pragma unroll
    for (int n = 0; n < X::kGroups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            fold(T::kTerms - 1, n, i, T::d(raw, i / 2) * x.template d<256>(n, i % 2, at), static_cast<float>(sum[n][i]));
        }
    }
}

template <class T, class X, class Fold>
__device__ __forceinline__ void multiply(const typename T::Raw& raw, const X& x, int at, Lane lane, Fold fold) {
    if constexpr (T::kLen == 32)
        multiply_32<T>(raw, x, at, lane, fold);
    else
        multiply_256<T>(raw, x, at, lane, fold);
}

// Blocks of a tile that a warp has in registers or on their way: 2 to 6 KB with few tokens, half of it with many.
template <class T, int groups>
inline constexpr int kAhead = groups == 1 || T::kFewAhead == 1 ? T::kFewAhead : T::kFewAhead / 2;

// acc = a whole tile of n_blocks blocks times the tokens.
template <class T, class X>
__device__ __forceinline__ void sum_tile(const std::byte* tile, int n_blocks, X& x, Lane lane, float (&acc)[X::kGroups][4]) {
    constexpr int ahead = kAhead<T, X::kGroups>;
    const std::byte* ends = tile + n_blocks * T::kBody;
    const auto load = [&](int b) {
        const int at = b < n_blocks ? b : n_blocks - 1;
        return T::load(tile + at * T::kBody, ends + at * T::kEnds, lane);
    };
    typename T::Raw raw[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) raw[i] = load(i);
    for (int b = 0; b < n_blocks; b += ahead) {
#pragma unroll
        for (int i = 0; i < ahead; ++i) {
            if (b + i >= n_blocks) break;
            x.template advance<T>(b + i, n_blocks);
            multiply<T>(raw[i], x, b + i, lane, [&](int, int n, int j, float p, float q) { acc[n][j] = __fmaf_rn(p, q, acc[n][j]); });
            raw[i] = load(b + i + ahead);
        }
    }
}

// ---- floats ---------------------------------------------------------------------------------------------------------------------------
// One chain of fma over k per (row, token): nothing may be split. A lane has the same rows and tokens as above and walks along k, four
// activations to a load, the weights of the next kFloatAhead on their way.

inline constexpr int kFloatAhead = 8;

template <class T, int groups>
__device__ __forceinline__ void sum_float_tile(const std::byte* tile, int cols, const DirectActs<groups>& x, Lane lane,
                                               float (&acc)[groups][4]) {
    typename T::Pair next[kFloatAhead];
    const auto load = [&](int k) { return T::load(tile, k < cols ? k : cols - 1, lane); };
#pragma unroll
    for (int i = 0; i < kFloatAhead; ++i) next[i] = load(i);
    for (int k = 0; k < cols; k += kFloatAhead) {
#pragma unroll
        for (int i = 0; i < kFloatAhead; i += 4) {
            if (k + i >= cols) break;
            float4 v[groups][2];
#pragma unroll
            for (int n = 0; n < groups; ++n) {
#pragma unroll
                for (int column = 0; column < 2; ++column) v[n][column] = x.four(n, column, (k + i) / 4);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (k + i + j >= cols) break;
                const float w[2] = {T::value(next[i + j].row[0]), T::value(next[i + j].row[1])};
                next[i + j] = load(k + i + j + kFloatAhead);
#pragma unroll
                for (int n = 0; n < groups; ++n) {
#pragma unroll
                    for (int c = 0; c < 4; ++c) acc[n][c] = __fmaf_rn(w[c / 2], element(v[n][c % 2], j), acc[n][c]);
                }
            }
        }
    }
}

// ---- any type -------------------------------------------------------------------------------------------------------------------------

// acc = tile `tile` of weights [.., cols] times the tokens first .. of rows, by a warp alone.
template <int groups>
__device__ __forceinline__ void sum_any_tile(Type type, const std::byte* weights, int cols, int64_t tile, const TokenRows& rows, int first,
                                             Lane lane, float (&acc)[groups][4]) {
    DirectActs<groups> x(rows, first, lane);
    with_type(type, [&](auto t) {
        using T = decltype(t);
        if constexpr (T::kLen == 1)
            sum_float_tile<T, groups>(weights + tile * cols * T::kBytes, cols, x, lane, acc);
        else
            sum_tile<T>(weights + tile * (cols / T::kLen) * (T::kBody + T::kEnds), cols / T::kLen, x, lane, acc);
    });
}

// The same by all warps of a block at once, each with a tile of its own, over activations staged in shared memory. Floats are not: their
// bound is the chain of fma.
template <int groups>
__device__ __forceinline__ void sum_any_tile_staged(Type type, const std::byte* weights, int cols, int64_t tile, const TokenRows& rows,
                                                    int first, Lane lane, uint32_t* shared, float (&acc)[groups][4]) {
    with_type(type, [&](auto t) {
        using T = decltype(t);
        if constexpr (T::kLen == 1) {
            const DirectActs<groups> x(rows, first, lane);
            sum_float_tile<T, groups>(weights + tile * cols * T::kBytes, cols, x, lane, acc);
        } else {
            StagedActs<groups> x(rows, first, lane, shared);
            sum_tile<T>(weights + tile * (cols / T::kLen) * (T::kBody + T::kEnds), cols / T::kLen, x, lane, acc);
        }
    });
}

}  // namespace moepic::device
