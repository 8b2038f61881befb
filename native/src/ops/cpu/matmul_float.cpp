// y = W x for F32, F16 and BF16 weights with f32 activations: routers, and models that were not quantized.
//   W tiles of 16 rows (tiles.h)   x [cols] f32 per token   y [tokens][rows] f32
// One fused multiply-add per k, row tile and token, k ascending in a single sum: the contract forbids splitting it. So latency is hidden
// across tokens, or across tiles when there is one token. Reads 64 or 32 bytes of W per k: memory is the bound for one token.
#include "ops/cpu/kernels.h"
#include "ops/cpu/matmul_driver.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

struct F32 {
    static constexpr TileShape kShape = kTileF32;
    static inline F16x weights(const std::byte* tile, int64_t k) { return f_load(reinterpret_cast<const float*>(tile) + k * kTileRows); }
};

struct F16 {
    static constexpr TileShape kShape = kTileF16;
    static inline F16x weights(const std::byte* tile, int64_t k) {
        return f_load_half(reinterpret_cast<const uint16_t*>(tile) + k * kTileRows);
    }
};

struct BF16 {
    static constexpr TileShape kShape = kTileBF16;
    static inline F16x weights(const std::byte* tile, int64_t k) {
        return f_load_bf16(reinterpret_cast<const uint16_t*>(tile) + k * kTileRows);
    }
};

// `tiles` neighbouring tiles for n tokens.
template <class Q, int tiles, int n>
inline void run_floats(const std::byte* w, int64_t stride, int64_t cols, const float* const (&x)[n], F16x (&acc)[tiles][n]) {
    for (int i = 0; i < tiles; ++i)
        for (int t = 0; t < n; ++t) acc[i][t] = f_set(0.0f);
    for (int64_t k = 0; k < cols; ++k)
        for (int i = 0; i < tiles; ++i) {
            const F16x column = Q::weights(w + i * stride, k);
            for (int t = 0; t < n; ++t) acc[i][t] = f_fma(column, f_set(x[t][k]), acc[i][t]);
        }
}

template <class Q, int tiles, int n>
int64_t run_group(const MatmulJob& job, int64_t token, int64_t tile) {
    const int64_t stride = job.w.cols * (Q::kShape.body + Q::kShape.ends);
    const float* x[n];
    for (int t = 0; t < n; ++t) {
        const int64_t row = job.gather ? job.gather[token + t] : token + t;
        x[t] = reinterpret_cast<const float*>(job.acts + static_cast<size_t>(row) * job.act_stride);
    }
    for (; tile + tiles <= job.tile_end; tile += tiles) {
        F16x acc[tiles][n];
        run_floats<Q, tiles, n>(job.w.data + tile * stride, stride, job.w.cols, x, acc);
        for (int i = 0; i < tiles; ++i)
            for (int t = 0; t < n; ++t) finish(job, tile + i, token + t, acc[i][t]);
    }
    return tile;
}

template <class Q>
void run_type(const MatmulJob& job) {
    int64_t token = 0;
    for (; token + kTokenGroup <= job.n_tokens; token += kTokenGroup) run_group<Q, 1, kTokenGroup>(job, token, job.tile_begin);
    for (; token + 2 <= job.n_tokens; token += 2) {
        const int64_t tile = run_group<Q, 2, 2>(job, token, job.tile_begin);
        run_group<Q, 1, 2>(job, token, tile);
    }
    if (token < job.n_tokens) {
        const int64_t tile = run_group<Q, 4, 1>(job, token, job.tile_begin);
        run_group<Q, 1, 1>(job, token, tile);
    }
}

}  // namespace

bool matmul_float(const MatmulJob& job) {
    switch (job.w.type) {
        case Type::f32:
            run_type<F32>(job);
            return true;
        case Type::f16:
            run_type<F16>(job);
            return true;
        case Type::bf16:
            run_type<BF16>(job);
            return true;
        default:
            return false;
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
