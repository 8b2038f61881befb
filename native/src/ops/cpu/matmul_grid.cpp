// The types of 256 weights whose magnitudes come from a codebook: IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S. What is done with codes is in
// matmul_256.h; here an index becomes them, in tiles' order of bits (tiles.h):
//
//   indices -> entries (grid.h) -> per column, a nibble of level and sign in each byte -> a table of 16: offset + or - magnitude
//
// The sign is part of the table's index, so it costs a shift and a choice. With the offset codes are in 0..127 and so narrow (bytes.h).
#include "ops/cpu/grid.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/matmul_256.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

// offset + or - a level by a nibble: the level in n_bits bits from level_bit on, a minus in sign_bit. Other bits don't count.
struct alignas(16) Codes {
    uint8_t v[16];
    template <int n>
    constexpr Codes(const int8_t (&levels)[n], int offset, int level_bit, int n_bits, int sign_bit) : v{} {
        for (int i = 0; i < 16; ++i) {
            const int level = (i >> level_bit) & ((1 << n_bits) - 1);
            const int magnitude = level < n ? levels[level] : 0;
            v[i] = static_cast<uint8_t>(i >> sign_bit & 1 ? offset - magnitude : offset + magnitude);
        }
    }
};

// Sign bits of column j, moved to bit `to` of each byte.
template <int j, int to>
[[gnu::always_inline]] inline I16x signs_at(I16x signs) {
    constexpr int from = kSignBit[j];
    if constexpr (from > to) return i_shr<from - to>(signs);
    if constexpr (from < to) return i_shl<to - from>(signs);
    return signs;
}

// The last sign of each of four groups from the other seven. What else the dword holds in those four bits, its top ones, is lost.
[[gnu::always_inline]] inline I16x with_last_signs(I16x dword) {
    const I16x seven = dword & i_set(0x0fffffff);
    I16x odd = seven ^ i_shr<4>(seven);
    odd = odd ^ i_shr<16>(odd);
    odd = odd ^ i_shr<8>(odd);
    return seven | i_shl<28>(odd);
}

// Bytes 2 s + 1, s from the top four bits of four columns that are `step` bytes apart.
inline I16x odd_top_nibbles(const std::byte* first, int step) {
    const I16x s01 = i_select(0xff, i_shr<28>(i_load(first)), i_shr<20>(i_load(first + step)));
    const I16x s23 = i_select(0xff0000, i_shr<12>(i_load(first + 2 * step)), i_shr<4>(i_load(first + 3 * step)));
    return i_shl<1>(i_select(0xffff, s01, s23) & bytes4(15)) | bytes4(1);
}

// Bytes 2 s + 1, s from the low and the high nibbles of a column.
inline void odd_nibbles(I16x both, I16x& first, I16x& second) {
    first = i_shl<1>(both & bytes4(15)) | bytes4(1);
    second = i_shr<3>(both & bytes4(0xf0)) | bytes4(1);
}

// The higher bits of run r's indices, those of lookup 0 from bit 8 of each half-word on, those of the next ones to the left (tiles.h).
inline I16x high_bits(const std::byte* qh, int r) {
    return i_shr_by(i_shl_by(column(qh, r / 4), r % 4 < 2 ? 8 : 0), r % 2 * 4);
}

// Indices: low bytes from half-words of `low`, the rest from `high`.
inline I16x indices(I16x low, I16x high) {
    return i_select(0x00ff00ff, low, high);
}

// Two columns of each entry, and the signs of all eight.
struct Run2 {
    I16x entries[4], signs;
};

constexpr int kOffset2 = 64;
constexpr Codes kEven(iq2_levels, kOffset2, 0, 2, 3), kOdd(iq2_levels, kOffset2, 2, 2, 0);

struct Type2 : Type256 {
    static constexpr int kMax = kOffset2 + 43, kOffset = kOffset2;
    static inline F16x scale(const std::byte* ends) { return half_column(ends, 0) * f_set(0.125f); }
    template <int n>
    [[gnu::always_inline]] static inline Run2 look_up(const Grid<n>& grid, I16x even, I16x odd, I16x signs) {
        Run2 run;
        i_grid(grid, even, run.entries[0], run.entries[2]);
        i_grid(grid, odd, run.entries[1], run.entries[3]);
        for (I16x& entry : run.entries) entry = entry & bytes4(15);
        run.signs = signs;
        return run;
    }
    // Even columns have their levels in bits 0, 1 of each byte and take the sign in bit 3; odd ones have them in bits 2, 3 and take it in
    // bit 0. The bit that is left belongs to the neighbour.
    template <int j>
    [[gnu::always_inline]] static inline I16x codes(const Run2& run, int, std::integral_constant<int, j>) {
        constexpr int sign = j % 2 == 0 ? 3 : 0;
        const I16x nibbles = i_select(0x01010101u << sign, signs_at<j, sign>(run.signs), run.entries[j / 2]);
        return i_lookup(i_repeat16(j % 2 == 0 ? kEven.v : kOdd.v), nibbles);
    }
};

constexpr Grid<256> kGrid2XXS(iq2_xxs_grid, spread_eight);
constexpr Grid<512> kGrid2XS(iq2_xs_grid, spread_eight);
constexpr Grid<1024> kGrid2S(iq2_s_grid, spread_eight);

struct IQ2_XXS : Type2 {
    static constexpr TileShape kShape = kTileIQ2_XXS;
    static constexpr int kSubs = 8;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[2], I16x (&)[2]) {
        sc[0] = odd_top_nibbles(body + kColumn, 2 * kColumn);
        sc[1] = odd_top_nibbles(body + 9 * kColumn, 2 * kColumn);
    }
    [[gnu::always_inline]] static inline Run2 open(const std::byte* body, int r) {
        const I16x low = column(body, 2 * r);
        return look_up(kGrid2XXS, low, i_shr<8>(low), with_last_signs(column(body, 2 * r + 1)));
    }
};

struct IQ2_XS : Type2 {
    static constexpr TileShape kShape = kTileIQ2_XS;
    static constexpr int kSubs = 16;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[4], I16x (&)[4]) {
        odd_nibbles(column(body, 16), sc[0], sc[1]);
        odd_nibbles(column(body, 17), sc[2], sc[3]);
    }
    // The ninth bits of the indices are above the signs, those of groups 0 and 2, or 1 and 3, two bits apart.
    [[gnu::always_inline]] static inline Run2 open(const std::byte* body, int r) {
        const I16x low = column(body, 2 * r), signs = column(body, 2 * r + 1);
        const I16x high = i_select(0xffff, i_shr<20>(signs), i_shr<6>(signs));
        return look_up(kGrid2XS, indices(low, high), indices(i_shr<8>(low), i_shr<1>(high)), with_last_signs(signs));
    }
};

struct IQ2_S : Type2 {
    static constexpr TileShape kShape = kTileIQ2_S;
    static constexpr int kSubs = 16;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[4], I16x (&)[4]) {
        odd_nibbles(column(body, 18), sc[0], sc[1]);
        odd_nibbles(column(body, 19), sc[2], sc[3]);
    }
    [[gnu::always_inline]] static inline Run2 open(const std::byte* body, int r) {
        const I16x low = column(body, r), high = high_bits(body + 16 * kColumn, r);
        return look_up(kGrid2S, indices(low, high), indices(i_shr<8>(low), i_shr<2>(high)), column(body, 8 + r));
    }
};

// One column of each entry, and the signs of all eight.
struct Run3 {
    I16x entries[8], signs;
};

template <const Codes& table>
struct Type3 : Type256 {
    static constexpr int kSubs = 8;
    // Columns 4 i .. 4 i + 3 of a run from their indices.
    template <int n>
    [[gnu::always_inline]] static inline void look_up(const Grid<n>& grid, I16x even, I16x odd, I16x* entries) {
        i_grid(grid, even, entries[0], entries[2]);
        i_grid(grid, odd, entries[1], entries[3]);
    }
    template <int j>
    [[gnu::always_inline]] static inline I16x codes(const Run3& run, int, std::integral_constant<int, j>) {
        return i_lookup(i_repeat16(table.v), i_select(0x08080808, signs_at<j, 3>(run.signs), run.entries[j]));
    }
};

constexpr int kOffset3XXS = 64, kOffset3S = 16;
constexpr Codes kCodes3XXS(iq3_xxs_levels, kOffset3XXS, 0, 3, 3), kCodes3S(iq3_s_levels, kOffset3S, 0, 3, 3);
constexpr Grid<256> kGrid3XXS(iq3_xxs_grid, spread_four);
constexpr Grid<512> kGrid3S(iq3_s_grid, spread_four);

struct IQ3_XXS : Type3<kCodes3XXS> {
    static constexpr TileShape kShape = kTileIQ3_XXS;
    static constexpr int kMax = kOffset3XXS + 62, kOffset = kOffset3XXS;
    static inline F16x scale(const std::byte* ends) { return half_column(ends, 0) * f_set(0.25f); }
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[2], I16x (&)[2]) {
        sc[0] = odd_top_nibbles(body + 16 * kColumn, kColumn);
        sc[1] = odd_top_nibbles(body + 20 * kColumn, kColumn);
    }
    [[gnu::always_inline]] static inline Run3 open(const std::byte* body, int r) {
        Run3 run;
        for (int i = 0; i < 2; ++i) {
            const I16x low = column(body, 2 * r + i);
            look_up(kGrid3XXS, low, i_shr<8>(low), run.entries + 4 * i);
        }
        run.signs = with_last_signs(column(body, 16 + r));
        return run;
    }
};

struct IQ3_S : Type3<kCodes3S> {
    static constexpr TileShape kShape = kTileIQ3_S;
    static constexpr int kMax = kOffset3S + 15, kOffset = kOffset3S;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[2], I16x (&)[2]) {
        odd_nibbles(column(body, 26), sc[0], sc[1]);
    }
    [[gnu::always_inline]] static inline Run3 open(const std::byte* body, int r) {
        Run3 run;
        const I16x high = high_bits(body + 16 * kColumn, r);
        const I16x first = column(body, 2 * r), second = column(body, 2 * r + 1);
        look_up(kGrid3S, indices(first, high), indices(i_shr<8>(first), i_shr<1>(high)), run.entries);
        look_up(kGrid3S, indices(second, i_shr<2>(high)), indices(i_shr<8>(second), i_shr<3>(high)), run.entries + 4);
        run.signs = column(body, 18 + r);
        return run;
    }
};

}  // namespace

bool matmul_grid(const MatmulJob& job) {
    switch (job.w.type) {
        case Type::iq2_xxs:
            return run_256<IQ2_XXS>(job);
        case Type::iq2_xs:
            return run_256<IQ2_XS>(job);
        case Type::iq2_s:
            return run_256<IQ2_S>(job);
        case Type::iq3_xxs:
            return run_256<IQ3_XXS>(job);
        case Type::iq3_s:
            return run_256<IQ3_S>(job);
        default:
            return false;
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
