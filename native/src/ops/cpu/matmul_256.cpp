// y = W x for the types with 256 weights per block under integer sub-block scales: Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS.
//   W tiles of 16 rows (tiles.h)   x Act256 blocks, 64-byte aligned tokens   y [tokens][rows] f32
// Reads every byte of W once per call and group of tokens; with one token memory is the bound (84 to 210 bytes per 256 weights), with many
// the int8 multiplier is: 64 dot instructions per block, row tile and token, beside 8 or 16 multiplications by sub-block scales.
//
// Everything up to the block is an exact int32: |sum| <= 241 * 127 * 256 * 32 < 2^28 (IQ4_XS), 63 * 127 * 256 * 128 < 2^28 (Q6_K). So
// there is one float operation per 256 weights (two with minimums). Minimums, and the offsets of types whose codes carry one, both need
// sum over sub-blocks of (byte per row) * (sum of activations): two half-word products per dword and instruction.
#include "ops/cpu/activations.h"
#include "ops/cpu/bytes.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/matmul_driver.h"
#include "ops/cpu/matmul_panel.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

inline I16x bytes4(uint8_t a) {
    return i_set(static_cast<int32_t>(a * 0x01010101u));
}

// Scale s, a signed byte of column s / 4, as an int32 per row.
inline I16x scale_of(const I16x* scales, int s) {
    return i_sar<24>(i_shl_by(scales[s / 4], 24 - 8 * (s % 4)));
}

// What the types share. T: kShape, kMax (i_dots), kSubs (8 or 16 sub-blocks), kOffset (codes are q - kOffset), kMin (has minimums),
//   scales(body, ends, sc, mn)   signed bytes; byte i of sc[j] is the scale of sub-block 4j + i
//   codes(body, r, j)            codes of weights 32 r + 4 j .. + 3 of each row
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
        for (int r = 0; r < 8; ++r) {
            each_constant<parts>([&](auto part) __attribute__((always_inline)) {
                constexpr int first = count * part();
                I16x dot[tiles][n];
                const int8_t* q[n];
                for (int t = 0; t < n; ++t) {
                    q[t] = a[t]->q + 32 * r + 4 * first;
                    for (int i = 0; i < tiles; ++i) dot[i][t] = i_set(0);
                }
                i_dots<T::kMax, count, tiles, n>(
                    dot, q, [&](int i, auto j) __attribute__((always_inline)) { return T::codes(body[i], r, first + j()); });
                for (int i = 0; i < tiles; ++i) {
                    const I16x scale = scale_of(sc[i], parts * r + part());
                    for (int t = 0; t < n; ++t) sum[i][t] = sum[i][t] + dot[i][t] * scale;
                }
            });
        }
        for (int i = 0; i < tiles; ++i) {
            const F16x d = half_column(ends[i], 0);
            for (int t = 0; t < n; ++t) acc[i][t] = f_fma(d * f_set(a[t]->d), f_from_i(sum[i][t]), acc[i][t]);
        }
    }
};

struct Q2_K {
    static constexpr TileShape kShape = kTileQ2_K;
    static constexpr int kMax = 3, kSubs = 16, kOffset = 0;
    static constexpr bool kMin = true;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[4], I16x (&mn)[4]) {
        for (int j = 0; j < 4; ++j) {
            const I16x both = column(body, j);
            sc[j] = both & bytes4(0x0f);
            mn[j] = i_shr<4>(both) & bytes4(0x0f);
        }
    }
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* qs = body + (4 + r / 4 * 8) * kColumn;
        return i_shr_by(column(qs, j), r % 4 * 2) & bytes4(3);
    }
};

struct Q3_K {
    static constexpr TileShape kShape = kTileQ3_K;
    static constexpr int kMax = 7, kSubs = 16, kOffset = 4;
    static constexpr bool kMin = false;
    // The 12 bytes of unpack_scales_q3_K as three dwords per row.
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[4], I16x (&)[4]) {
        const I16x low = bytes4(0x0f), high = bytes4(0x30), bias = bytes4(32);
        const I16x a = column(body, 0), b = column(body, 1), c = column(body, 2);
        sc[0] = i_sub_bytes((a & low) | (i_shl<4>(c) & high), bias);
        sc[1] = i_sub_bytes((b & low) | (i_shl<2>(c) & high), bias);
        sc[2] = i_sub_bytes((i_shr<4>(a) & low) | (c & high), bias);
        sc[3] = i_sub_bytes((i_shr<4>(b) & low) | (i_shr<2>(c) & high), bias);
    }
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* hmask = body + 3 * kColumn;
        const std::byte* qs = body + (11 + r / 4 * 8) * kColumn;
        const I16x high = i_shl<2>(i_shr_by(column(hmask, j), r) & bytes4(1));
        return (i_shr_by(column(qs, j), r % 4 * 2) & bytes4(3)) | high;
    }
};

// The 12 bytes of unpack_scales_q4_K as three dwords per row.
inline void scales_and_mins(const std::byte* body, I16x (&sc)[2], I16x (&mn)[2]) {
    const I16x low = bytes4(0x0f), high = bytes4(0x30), six = bytes4(0x3f);
    const I16x a = column(body, 0), b = column(body, 1), c = column(body, 2);
    sc[0] = a & six;
    mn[0] = b & six;
    sc[1] = (c & low) | (i_shr<2>(a) & high);
    mn[1] = (i_shr<4>(c) & low) | (i_shr<2>(b) & high);
}

struct Q4_K {
    static constexpr TileShape kShape = kTileQ4_K;
    static constexpr int kMax = 15, kSubs = 8, kOffset = 0;
    static constexpr bool kMin = true;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[2], I16x (&mn)[2]) { scales_and_mins(body, sc, mn); }
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* qs = body + (3 + r / 2 * 8) * kColumn;
        return i_shr_by(column(qs, j), r % 2 * 4) & bytes4(0x0f);
    }
};

struct Q5_K {
    static constexpr TileShape kShape = kTileQ5_K;
    static constexpr int kMax = 31, kSubs = 8, kOffset = 0;
    static constexpr bool kMin = true;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[2], I16x (&mn)[2]) { scales_and_mins(body, sc, mn); }
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* qh = body + 3 * kColumn;
        const std::byte* qs = body + (11 + r / 2 * 8) * kColumn;
        const I16x high = i_shl<4>(i_shr_by(column(qh, j), r) & bytes4(1));
        return (i_shr_by(column(qs, j), r % 2 * 4) & bytes4(0x0f)) | high;
    }
};

struct Q6_K {
    static constexpr TileShape kShape = kTileQ6_K;
    static constexpr int kMax = 63, kSubs = 16, kOffset = 32;
    static constexpr bool kMin = false;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[4], I16x (&)[4]) {
        for (int j = 0; j < 4; ++j) sc[j] = column(body, j);
    }
    // Run r is quarter r % 4 of half r / 4: quarters 0 and 1 are the low nibbles of 32 bytes each, 2 and 3 the high ones.
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* ql = body + (4 + r / 4 * 16 + r % 2 * 8) * kColumn;
        const std::byte* qh = body + (36 + r / 4 * 8) * kColumn;
        const I16x high = i_shl<4>(i_shr_by(column(qh, j), r % 4 * 2) & bytes4(3));
        return (i_shr_by(column(ql, j), r % 4 / 2 * 4) & bytes4(0x0f)) | high;
    }
};

struct alignas(16) Codes {
    uint8_t v[16];
    constexpr Codes(const int8_t (&values)[16], int bias) : v{} {
        for (int i = 0; i < 16; ++i) v[i] = static_cast<uint8_t>(values[i] + bias);
    }
};
constexpr Codes kIQ4Codes(iq4_nl_values, kWideBias);

struct IQ4_XS {
    static constexpr TileShape kShape = kTileIQ4_XS;
    static constexpr int kMax = 255, kSubs = 8, kOffset = kWideBias;
    static constexpr bool kMin = false;
    // scales_l' has its nibbles in order; two shifts of scales_h' put a bit pair into bits 4 and 5 of each byte (kScalesHigh).
    static inline void scales(const std::byte* body, const std::byte* ends, I16x (&sc)[2], I16x (&)[2]) {
        const I16x low = bytes4(0x0f), high = bytes4(0x30), bias = bytes4(32);
        const I16x l = column(body, 0), h = i_load_u16(ends + 2 * kTileRows);
        const I16x spread = h | i_shl<14>(h);
        sc[0] = i_sub_bytes((l & low) | (spread & high), bias);
        sc[1] = i_sub_bytes((i_shr<4>(l) & low) | (i_shl<4>(spread) & high), bias);
    }
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* qs = body + (1 + r * 4) * kColumn;
        const I16x both = column(qs, j % 4);
        return i_lookup(i_repeat16(kIQ4Codes.v), (j < 4 ? both : i_shr<4>(both)) & bytes4(0x0f));
    }
};

// Up to this many tokens meet a block while it is unpacked in registers; a panel for them would cost more than it saves (measured: the
// two are level at 8 tokens of Q4_K on AVX-512).
#if MOEPIC_SIMD_AVX512
constexpr int kDirectTokens = 8;
#else
constexpr int kDirectTokens = 4;
#endif

template <class T>
bool run(const MatmulJob& job) {
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

}  // namespace

bool matmul_256(const MatmulJob& job) {
    switch (job.w.type) {
        case Type::q2_k:
            return run<Q2_K>(job);
        case Type::q3_k:
            return run<Q3_K>(job);
        case Type::q4_k:
            return run<Q4_K>(job);
        case Type::q5_k:
            return run<Q5_K>(job);
        case Type::q6_k:
            return run<Q6_K>(job);
        case Type::iq4_xs:
            return run<IQ4_XS>(job);
        default:
            return false;
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
