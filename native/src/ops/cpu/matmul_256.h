// The kernel of the types with 256 weights per block under integer sub-block scales; matmul_256.cpp and matmul_grid.cpp bring the types.
//   W tiles of 16 rows (tiles.h)   x Act256 blocks, 64-byte aligned tokens   y [tokens][rows] f32
// Reads every byte of W once per call and group of tokens; with one token memory is the bound (66 to 210 bytes per 256 weights), where
// unpacking keeps up; with many the int8 multiplier is: 64 dot instructions per block, row tile and token, beside 8 or 16 multiplications
// by sub-block scales.
//
// Everything up to the block is an exact int32: |sum| <= 241 * 127 * 256 * 32 < 2^28 (IQ4_XS), 63 * 127 * 256 * 128 < 2^28 (Q6_K),
// 126 * 127 * 256 * 31 < 2^27 (IQ3_XXS). So there is one float operation per 256 weights (two with minimums). Minimums, and the offsets
// of types whose codes carry one, both need sum over sub-blocks of (byte per row) * (sum of activations): two half-word products per dword
// and instruction.
#pragma once

#include "ops/cpu/activations.h"
#include "ops/cpu/bytes.h"
#include "ops/cpu/matmul_driver.h"
#include "ops/cpu/matmul_panel.h"

namespace moepic::ops::MOEPIC_ISA {

inline I16x bytes4(uint8_t a) {
    return i_set(static_cast<int32_t>(a * 0x01010101u));
}

// Scale s, a signed byte of column s / 4, as an int32 per row.
inline I16x scale_of(const I16x* scales, int s) {
    return i_sar<24>(i_shl_by(scales[s / 4], 24 - 8 * (s % 4)));
}

// What a type has unless it says otherwise.
struct Type256 {
    static constexpr int kOffset = 0;
    static constexpr bool kMin = false;
    static inline F16x scale(const std::byte* ends) { return half_column(ends, 0); }
    static inline const std::byte* open(const std::byte* body, int) { return body; }
};

// What the types share. T: kShape, kMax (i_dots), kSubs (8 or 16 sub-blocks), kOffset (codes are q - kOffset), kMin (has minimums),
//   scale(ends)                  d of each row
//   scales(body, ends, sc, mn)   signed bytes; byte i of sc[j] is the scale of sub-block 4j + i
//   open(body, r)                what the columns of run r, 32 weights, have in common
//   codes(run, r, j)             from that, codes of weights 32 r + 4 j .. + 3 of each row; j is an integral constant
template <class T>
struct Kernel256 : T {
    template <int tiles, int n>
    [[gnu::always_inline]] static inline void block(const std::byte* const (&body)[tiles], const std::byte* const (&ends)[tiles],
                                                    const std::byte* const (&x)[n], int64_t b, F16x (&acc)[tiles][n]) {
        constexpr int columns = T::kSubs / 4, parts = T::kSubs / 8, count = 8 / parts;
        const Act256* a[n];
        for (int t = 0; t < n; ++t) a[t] = reinterpret_cast<const Act256*>(x[t]) + b;
        I16x sc[tiles][columns], sum[tiles][n];
        for (int i = 0; i < tiles; ++i) {
            I16x mn[columns], offset[n];
            T::scales(body[i], ends[i], sc[i], mn);
            for (int t = 0; t < n; ++t) offset[t] = i_set(0);
            if constexpr (T::kMin || T::kOffset != 0) {
                for (int j = 0; j < columns; ++j) {
                    const I16x bytes = T::kMin ? mn[j] : sc[i][j];
                    const I16x even = i_even_bytes(bytes), odd = i_odd_bytes(bytes);
                    for (int t = 0; t < n; ++t) {
                        const int16_t* sums = (T::kSubs == 8 ? a[t]->sum32 : a[t]->sum16) + 4 * j;
                        offset[t] = i_dot_pairs(i_dot_pairs(offset[t], even, sums), odd, sums + 2);
                    }
                }
            }
            // Minimums join the float sum first, so that nothing of them is alive in the long loop below.
            if constexpr (T::kMin) {
                const F16x dmin = half_column(ends[i], 1);
                for (int t = 0; t < n; ++t) acc[i][t] = f_fma(dmin * f_set(a[t]->d), f_from_i(i_set(0) - offset[t]), acc[i][t]);
            }
            for (int t = 0; t < n; ++t) {
                sum[i][t] = i_set(0);
                if constexpr (T::kOffset != 0) sum[i][t] = sum[i][t] - offset[t] * i_set(T::kOffset);
            }
        }
        using Run = decltype(T::open(body[0], 0));
        for (int r = 0; r < 8; ++r) {
            Run run[tiles];
            for (int i = 0; i < tiles; ++i) run[i] = T::open(body[i], r);
            each_constant<parts>([&](auto part) __attribute__((always_inline)) {
                constexpr int first = count * part();
                I16x dot[tiles][n];
                const int8_t* q[n];
                for (int t = 0; t < n; ++t) {
                    q[t] = a[t]->q + 32 * r + 4 * first;
                    for (int i = 0; i < tiles; ++i) dot[i][t] = i_set(0);
                }
                i_dots<T::kMax, count, tiles, n>(dot, q, [&](int i, auto j) __attribute__((always_inline)) {
                    return T::codes(run[i], r, std::integral_constant<int, first + j()>{});
                });
                for (int i = 0; i < tiles; ++i) {
                    const I16x scale = scale_of(sc[i], parts * r + part());
                    for (int t = 0; t < n; ++t) sum[i][t] = sum[i][t] + dot[i][t] * scale;
                }
            });
        }
        for (int i = 0; i < tiles; ++i) {
            const F16x d = T::scale(ends[i]);
            for (int t = 0; t < n; ++t) acc[i][t] = f_fma(d * f_set(a[t]->d), f_from_i(sum[i][t]), acc[i][t]);
        }
    }
};

// Up to this many tokens meet a block while it is unpacked in registers; a panel for them would cost more than it saves (measured: the
// two are level at 8 tokens of Q4_K on AVX-512).
#if MOEPIC_SIMD_AVX512
inline constexpr int kDirectTokens = 8;
#else
inline constexpr int kDirectTokens = 4;
#endif

template <class T>
bool run_256(const MatmulJob& job) {
    if (job.n_tokens <= kDirectTokens) {
        run_matmul<Kernel256<T>, 1, kDirectTokens>(job);
        return true;
    }
    int64_t tile = job.tile_begin;
    if constexpr (kTileGroup > 1) {
        for (; tile + kTileGroup <= job.tile_end; tile += kTileGroup) panel_tiles<T, kTileGroup>(job, tile);
    }
    for (; tile < job.tile_end; ++tile) panel_tiles<T, 1>(job, tile);
    return true;
}

}  // namespace moepic::ops::MOEPIC_ISA
