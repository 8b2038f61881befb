// y = W x for the types with 32 weights and one scale per block: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL MXFP4.
//   W tiles of 16 rows (tiles.h)   x Act32 blocks, 64-byte aligned tokens   y [tokens][rows] f32
// Reads every byte of W once per call and group of tokens; with one token memory is the bound (17 to 34 bytes per 32 weights), with many
// the int8 multiplier is: 8 dot instructions per block, row tile and token, beside 3 for the scales.
//
// Codes stay unsigned, v = q - bias: the correction -bias * sum(x) is where the integer sum starts, so it costs a shift per block.
#include "ops/cpu/activations.h"
#include "ops/cpu/bytes.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/matmul_driver.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

// Weights 4j .. 4j + 3 of each row: low nibbles of column j, then high nibbles of column j - 4.
template <int j>
inline I16x nibbles(const std::byte* body) {
    if constexpr (j < 4)
        return column(body, j) & i_set(0x0f0f0f0f);
    else
        return i_shr<4>(column(body, j - 4)) & i_set(0x0f0f0f0f);
}

// Nibbles and a fifth bit from the first column (qh' of tiles.h).
template <int j>
inline I16x five_bits(const std::byte* body) {
    const I16x high = column(body, 0);
    I16x bit = high;
    if constexpr (j < 4) bit = i_shl<4 - j>(high);
    if constexpr (j > 4) bit = i_shr<j - 4>(high);
    return nibbles<j>(body + kColumn) | (bit & i_set(0x10101010));
}

struct alignas(16) Codes {
    uint8_t v[16];
    constexpr Codes(const int8_t (&values)[16], int bias) : v{} {
        for (int i = 0; i < 16; ++i) v[i] = static_cast<uint8_t>(values[i] + bias);
    }
};

template <int j>
inline I16x looked_up(const Codes& codes, const std::byte* body) {
    return i_lookup(i_repeat16(codes.v), nibbles<j>(body));
}

// What the types share. T: kShape, kMax (i_dots), kBiasBits (bias = 2^bits, -1: none), kMin (has a minimum), scale(ends), and
// codes<j>(body): weights 4j .. 4j + 3 of each row.
template <class T>
struct Kernel32 : T {
    template <int tiles, int n>
    [[gnu::always_inline]] static inline void block(const std::byte* const (&body)[tiles], const std::byte* const (&ends)[tiles],
                                                    const std::byte* const (&x)[n], int64_t b, F16x (&acc)[tiles][n]) {
        const Act32* a[n];
        const int8_t* q[n];
        I16x sum[tiles][n];
        for (int t = 0; t < n; ++t) {
            a[t] = reinterpret_cast<const Act32*>(x[t]) + b;
            q[t] = a[t]->q;
            I16x start = i_set(0);
            if constexpr (T::kBiasBits >= 0) start = i_shl<T::kBiasBits>(i_set(a[t]->neg_sum));
            for (int i = 0; i < tiles; ++i) sum[i][t] = start;
        }
        i_dots<T::kMax, 8, tiles, n>(sum, q, [&](int i, auto j) __attribute__((always_inline)) { return T::template codes<j()>(body[i]); });
        for (int i = 0; i < tiles; ++i) {
            const F16x d = T::scale(ends[i]);
            for (int t = 0; t < n; ++t) acc[i][t] = f_fma(d * f_set(a[t]->d), f_from_i(sum[i][t]), acc[i][t]);
        }
        if constexpr (T::kMin) {
            for (int i = 0; i < tiles; ++i) {
                const F16x m = half_column(ends[i], 1);
                for (int t = 0; t < n; ++t) acc[i][t] = f_fma(m, f_set(a[t]->s), acc[i][t]);
            }
        }
    }
};

struct HalfScale {
    static constexpr bool kMin = false;
    static inline F16x scale(const std::byte* ends) { return half_column(ends, 0); }
};

constexpr int kWideBits = kWideBias == 0 ? -1 : 7;
static_assert(kWideBias == 0 || kWideBias == 1 << 7);

struct Q4_0 : HalfScale {
    static constexpr TileShape kShape = kTileQ4_0;
    static constexpr int kMax = 15, kBiasBits = 3;
    template <int j>
    static inline I16x codes(const std::byte* body) {
        return nibbles<j>(body);
    }
};

struct Q4_1 : HalfScale {
    static constexpr TileShape kShape = kTileQ4_1;
    static constexpr int kMax = 15, kBiasBits = -1;
    static constexpr bool kMin = true;
    template <int j>
    static inline I16x codes(const std::byte* body) {
        return nibbles<j>(body);
    }
};

struct Q5_0 : HalfScale {
    static constexpr TileShape kShape = kTileQ5_0;
    static constexpr int kMax = 31, kBiasBits = 4;
    template <int j>
    static inline I16x codes(const std::byte* body) {
        return five_bits<j>(body);
    }
};

struct Q5_1 : HalfScale {
    static constexpr TileShape kShape = kTileQ5_1;
    static constexpr int kMax = 31, kBiasBits = -1;
    static constexpr bool kMin = true;
    template <int j>
    static inline I16x codes(const std::byte* body) {
        return five_bits<j>(body);
    }
};

struct Q8_0 : HalfScale {
    static constexpr TileShape kShape = kTileQ8_0;
    static constexpr int kMax = 255, kBiasBits = kWideBits;
    template <int j>
    static inline I16x codes(const std::byte* body) {
        return i_wide(column(body, j));
    }
};

constexpr Codes kIQ4Codes(iq4_nl_values, kWideBias);
constexpr Codes kMXFP4Codes(mxfp4_values, 16);

struct IQ4_NL : HalfScale {
    static constexpr TileShape kShape = kTileIQ4_NL;
    static constexpr int kMax = 255, kBiasBits = kWideBits;
    template <int j>
    static inline I16x codes(const std::byte* body) {
        return looked_up<j>(kIQ4Codes, body);
    }
};

struct MXFP4 {
    static constexpr TileShape kShape = kTileMXFP4;
    static constexpr int kMax = 28, kBiasBits = 4;
    static constexpr bool kMin = false;
    template <int j>
    static inline I16x codes(const std::byte* body) {
        return looked_up<j>(kMXFP4Codes, body);
    }
    // 2^(e - 128) as the product of two normal floats, so that e = 0 and 1 come out as the subnormals they are.
    static inline F16x scale(const std::byte* ends) {
        const I16x e = i_load_u8(ends), half = i_shr<1>(e);
        return f_bits(i_shl<23>(half + i_set(64))) * f_bits(i_shl<23>(e - half + i_set(62)));
    }
};

}  // namespace

bool matmul_32(const MatmulJob& job) {
    switch (job.w.type) {
        case Type::q4_0:
            run_matmul<Kernel32<Q4_0>, kTileGroup, kTokenGroup>(job);
            return true;
        case Type::q4_1:
            run_matmul<Kernel32<Q4_1>, kTileGroup, kTokenGroup>(job);
            return true;
        case Type::q5_0:
            run_matmul<Kernel32<Q5_0>, kTileGroup, kTokenGroup>(job);
            return true;
        case Type::q5_1:
            run_matmul<Kernel32<Q5_1>, kTileGroup, kTokenGroup>(job);
            return true;
        case Type::q8_0:
            run_matmul<Kernel32<Q8_0>, kTileGroup, kTokenGroup>(job);
            return true;
        case Type::iq4_nl:
            run_matmul<Kernel32<IQ4_NL>, kTileGroup, kTokenGroup>(job);
            return true;
        case Type::mxfp4:
            run_matmul<Kernel32<MXFP4>, kTileGroup, kTokenGroup>(job);
            return true;
        default:
            return false;
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
