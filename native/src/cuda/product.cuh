// One tile of weights times groups of 8 tokens, by one warp on the int8 tensor cores, with the float chain of ops/cpu/tiles.h.
//
// A result of the product lies with the lane 4 g + c: of group n, rows 2g and 2g + 1 and tokens 8n + 2c and 8n + 2c + 1,
//
//   i = 0: row 2g, token 2c    1: row 2g, token 2c + 1    2: row 2g + 1, token 2c    3: row 2g + 1, token 2c + 1
//
// and the operand B it brings is that of token 8n + g. Integers are exact, so a block of weights gives each (row, token) one or two float
// terms a b, in the order of tiles.h; the sum is acc = fma(a, b, acc) over them, blocks ascending. Whoever calls decides where the chain
// runs: in the lane's registers when a warp walks a whole row (sum_tile), or elsewhere when blocks of a row are shared out (matmul.cu).
//
// Tokens beyond the last are the last one again: what they give is never written, and no lane branches.
#pragma once

#include "cuda/weights.cuh"
#include "ops/cpu/activations.h"

namespace moepic::device {

// Rows of activations that the tokens [first, first + n) of a batch have.
struct TokenRows {
    const std::byte* acts;
    size_t stride;
    const int32_t* gather;  // token t has row gather[t]; null: row t
    int64_t n_tokens;       // of the batch; at least 1
    __device__ const std::byte* of(int64_t token) const {
        const int64_t t = token < n_tokens ? token : n_tokens - 1;
        return acts + static_cast<size_t>(gather ? gather[t] : t) * stride;
    }
};

// The rows that a lane reads: codes of its own token, scales of those whose results it has.
template <int groups>
struct LaneActs {
    const std::byte* own[groups];
    const std::byte* result[groups][2];
    __device__ LaneActs(const TokenRows& rows, int64_t first, Lane lane) {
#pragma unroll
        for (int n = 0; n < groups; ++n) {
            own[n] = rows.of(first + 8 * n + lane.g);
            result[n][0] = rows.of(first + 8 * n + 2 * lane.c);
            result[n][1] = rows.of(first + 8 * n + 2 * lane.c + 1);
        }
    }
};

// Dwords c and c + 4 of 32 codes.
__device__ inline void act_run(const int8_t* q, Lane lane, uint32_t (&b)[2]) {
    const auto* words = reinterpret_cast<const uint32_t*>(q) + lane.c;
    b[0] = __ldg(words);
    b[1] = __ldg(words + 4);
}

// fold(term, n, i, a, b) for the terms of block `at`, in order.
template <class T, int groups, class Fold>
__device__ inline void multiply_32(const typename T::Raw& raw, const LaneActs<groups>& x, int64_t at, Lane lane, Fold fold) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = T::code(raw, 0, i, lane);
#pragma unroll
    for (int n = 0; n < groups; ++n) {
        uint32_t b[2];
        act_run(reinterpret_cast<const ops::Act32*>(x.own[n])[at].q, lane, b);
        int32_t sum[4] = {};
        mma_s8(sum, a, b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const ops::Act32& act = reinterpret_cast<const ops::Act32*>(x.result[n][i % 2])[at];
            fold(0, n, i, T::d(raw, i / 2) * __ldg(&act.d), static_cast<float>(sum[i]));
            if constexpr (T::kMin) fold(1, n, i, T::min(raw, i / 2), __ldg(&act.s));
        }
    }
}

// sum over sub-blocks of minimum * sum of activations: a product as well, with sums of up to 13 bits in two halves of 7 and 6.
template <class T, int groups, class Fold>
__device__ inline void multiply_mins(const typename T::Raw& raw, const LaneActs<groups>& x, int64_t at, Lane lane, Fold fold) {
    static_assert(127 * 32 < 1 << 13);
    const uint32_t a[4] = {T::mins(raw, 0, lane), T::mins(raw, 1, lane), 0, 0};
#pragma unroll
    for (int n = 0; n < groups; ++n) {
        const ops::Act256& own = reinterpret_cast<const ops::Act256*>(x.own[n])[at];
        // Four sums in the order 0 2 1 3: shifting the second pair by a byte puts them in order. With 8 sub-blocks, lanes from c = 2 on
        // have minimums of 0 and read the sums of c - 2.
        const int four = T::kSubs == 16 ? lane.c : lane.c % 2;
        const auto* sums = reinterpret_cast<const uint32_t*>(T::kSubs == 16 ? own.sum16 : own.sum32) + 2 * four;
        const uint32_t even = __ldg(sums), odd = __ldg(sums + 1);
        const uint32_t low[2] = {(even & 0x007f007fu) | (odd & 0x007f007fu) << 8, 0};
        const uint32_t high[2] = {((even >> 7) & 0x00ff00ffu) | ((odd >> 7) & 0x00ff00ffu) << 8, 0};
        int32_t sum[4] = {}, sum_high[4] = {};
        mma_s8(sum, a, low);
        mma_s8(sum_high, a, high);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float dx = __ldg(&reinterpret_cast<const ops::Act256*>(x.result[n][i % 2])[at].d);
            fold(0, n, i, T::min(raw, i / 2) * dx, static_cast<float>(-(sum[i] + sum_high[i] * 128)));
        }
    }
}

template <class T, int groups, class Fold>
__device__ inline void multiply_256(const typename T::Raw& raw, const LaneActs<groups>& x, int64_t at, Lane lane, Fold fold) {
    if constexpr (T::kMin) multiply_mins<T, groups>(raw, x, at, lane, fold);
    constexpr int parts = T::kSubs / 8;  // of a run
    uint32_t scales[2][T::kSubs / 4];
    T::scales(raw, 0, scales[0]);
    T::scales(raw, 1, scales[1]);
    int32_t sum[groups][4] = {};
#pragma unroll
    for (int run = 0; run < 8; ++run) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = T::code(raw, run, i, lane);
#pragma unroll
        for (int n = 0; n < groups; ++n) {
            uint32_t b[2];
            act_run(reinterpret_cast<const ops::Act256*>(x.own[n])[at].q + 32 * run, lane, b);
#pragma unroll
            for (int part = 0; part < parts; ++part) {
                int32_t dot[4] = {};
                if constexpr (parts == 1)
                    mma_s8(dot, a, b);
                else
                    mma_s8(dot, {a[2 * part], a[2 * part + 1], 0, 0}, {b[part], 0});
                const int s = parts * run + part;
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[n][i] += dot[i] * static_cast<int8_t>(scales[i / 2][s / 4] >> (8 * (s % 4)));
            }
        }
    }
#pragma unroll
    for (int n = 0; n < groups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float dx = __ldg(&reinterpret_cast<const ops::Act256*>(x.result[n][i % 2])[at].d);
            fold(T::kTerms - 1, n, i, T::d(raw, i / 2) * dx, static_cast<float>(sum[n][i]));
        }
    }
}

template <class T, int groups, class Fold>
__device__ inline void multiply(const typename T::Raw& raw, const LaneActs<groups>& x, int64_t at, Lane lane, Fold fold) {
    if constexpr (T::kLen == 32)
        multiply_32<T, groups>(raw, x, at, lane, fold);
    else
        multiply_256<T, groups>(raw, x, at, lane, fold);
}

// Blocks of a tile that a warp asks for before it computes: some 2 KiB in any type.
template <class T>
inline constexpr int kAhead = T::kLen == 32 ? 4 : 1;

// acc = a whole tile of n_blocks blocks times the tokens; the next blocks are on their way while one is computed.
template <class T, int groups>
__device__ inline void sum_tile(const std::byte* tile, int64_t n_blocks, const LaneActs<groups>& x, Lane lane, float (&acc)[groups][4]) {
    const std::byte* ends = tile + n_blocks * T::kBody;
    const auto load = [&](int64_t b) {
        const int64_t at = b < n_blocks ? b : n_blocks - 1;
        return T::load(tile + at * T::kBody, ends + at * T::kEnds, lane);
    };
    typename T::Raw raw[kAhead<T>];
#pragma unroll
    for (int i = 0; i < kAhead<T>; ++i) raw[i] = load(i);
    for (int64_t b = 0; b < n_blocks; b += kAhead<T>) {
#pragma unroll
        for (int i = 0; i < kAhead<T>; ++i) {
            if (b + i >= n_blocks) break;
            const typename T::Raw block = raw[i];
            raw[i] = load(b + i + kAhead<T>);
            multiply<T, groups>(block, x, b + i, lane,
                                [&](int, int n, int j, float p, float q) { acc[n][j] = __fmaf_rn(p, q, acc[n][j]); });
        }
    }
}

// ---- floats ---------------------------------------------------------------------------------------------------------------------------
// One chain of fma over k per (row, token): nothing may be split. A lane has the same rows and tokens as above and walks along k, the
// loads of the next kFloatAhead on their way.

inline constexpr int kFloatAhead = 8;

template <class T, int groups>
__device__ inline void sum_float_tile(const std::byte* tile, int64_t cols, const LaneActs<groups>& x, Lane lane, float (&acc)[groups][4]) {
    typename T::Pair next[kFloatAhead];
    const auto load = [&](int64_t k) { return T::load(tile, k < cols ? k : cols - 1, lane); };
#pragma unroll
    for (int i = 0; i < kFloatAhead; ++i) next[i] = load(i);
    for (int64_t k = 0; k < cols; k += kFloatAhead) {
#pragma unroll
        for (int i = 0; i < kFloatAhead; ++i) {
            if (k + i >= cols) break;
            const float w[2] = {T::value(next[i].row[0]), T::value(next[i].row[1])};
            next[i] = load(k + i + kFloatAhead);
#pragma unroll
            for (int n = 0; n < groups; ++n) {
                const float v[2] = {__ldg(reinterpret_cast<const float*>(x.result[n][0]) + k + i),
                                    __ldg(reinterpret_cast<const float*>(x.result[n][1]) + k + i)};
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[n][j] = __fmaf_rn(w[j / 2], v[j % 2], acc[n][j]);
            }
        }
    }
}

// acc = a tile of any type times the tokens.
template <int groups>
__device__ inline void sum_any_tile(Type type, const std::byte* weights, int64_t cols, int64_t tile, const LaneActs<groups>& x, Lane lane,
                                    float (&acc)[groups][4]) {
    with_type(type, [&](auto t) {
        using T = decltype(t);
        if constexpr (T::kLen == 1) {
            sum_float_tile<T, groups>(weights + tile * cols * T::kBytes, cols, x, lane, acc);
        } else {
            const int64_t n_blocks = cols / T::kLen;
            sum_tile<T, groups>(weights + tile * n_blocks * (T::kBody + T::kEnds), n_blocks, x, lane, acc);
        }
    });
}

}  // namespace moepic::device
