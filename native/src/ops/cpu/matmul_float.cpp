// y = W x for F32, F16 and BF16 weights with f32 activations: routers, and models that were not quantized.
//   W tiles of 16 rows (tiles.h)   x [cols] f32 per token   y [tokens][rows] f32
// One fused multiply-add per k, row tile and token, k ascending in a single sum: the contract forbids splitting it. So the latency of that
// chain is hidden across tokens and tiles. Reads 64 or 32 bytes of W per k: memory is the bound for one token, the multiplier for many.
#include "ops/cpu/kernels.h"
#include "ops/cpu/matmul_driver.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

// A block is one k.
template <class T>
struct KernelFloat : T {
    template <int tiles, int n>
    [[gnu::always_inline]] static inline void block(const std::byte* const (&body)[tiles], const std::byte* const (&ends)[tiles],
                                                    const std::byte* const (&x)[n], int64_t k, F16x (&acc)[tiles][n]) {
        F16x w[tiles];
        for (int i = 0; i < tiles; ++i) w[i] = T::weights(body[i], ends[i]);
        for (int t = 0; t < n; ++t) {
            const F16x v = f_set(reinterpret_cast<const float*>(x[t])[k]);
            for (int i = 0; i < tiles; ++i) acc[i][t] = f_fma(w[i], v, acc[i][t]);
        }
    }
};

struct F32 {
    static constexpr TileShape kShape = kTileF32;
    static inline F16x weights(const std::byte* body, const std::byte*) { return f_load(reinterpret_cast<const float*>(body)); }
};

struct F16 {
    static constexpr TileShape kShape = kTileF16;
    static inline F16x weights(const std::byte*, const std::byte* ends) { return half_column(ends, 0); }
};

struct BF16 {
    static constexpr TileShape kShape = kTileBF16;
    static inline F16x weights(const std::byte*, const std::byte* ends) { return f_load_bf16(reinterpret_cast<const uint16_t*>(ends)); }
};

template <class T>
bool run(const MatmulJob& job) {
    run_matmul<KernelFloat<T>, kTileGroup, kTokenGroup, 4>(job);
    return true;
}

}  // namespace

bool matmul_float(const MatmulJob& job) {
    switch (job.w.type) {
        case Type::f32:
            return run<F32>(job);
        case Type::f16:
            return run<F16>(job);
        case Type::bf16:
            return run<BF16>(job);
        default:
            return false;
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
