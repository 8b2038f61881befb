// GGUF rows to tiles (tiles.h draws them). Runs over a whole model at load and over every expert that is streamed, so it should keep up
// with memory: each byte is read once, 16 bytes of a row at a time, and columns are written whole, a cache line each, in order. Measured on
// one thread of Zen 5, memory to memory (bench/kernels.py): 15 to 19 GB/s for all types on AVX-512, 11 to 18 on AVX2, 6 to 15 without,
// where copying the same bytes gives 20. From L2: Q4_K 58, 73 and 18. From L2 to memory on AVX-512: 22 to 25, past the caches 30 to 35.
#include <cstring>

#include "ops/cpu/kernels.h"
#include "ops/cpu/tiles.h"
#include "ops/cpu/transpose.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

// Where the columns of a block go: past the caches only where they begin on a cache line.
struct Columns {
    std::byte* to;
    bool past;

    [[gnu::always_inline]] void store(int j, I16x c) const { past ? i_stream(to + j * kColumn, c) : i_store(to + j * kColumn, c); }
    Columns operator+(int n) const { return {to + n * kColumn, past}; }
};

// `bytes` of each row, a multiple of 16, as columns; column j is changed by change(j, column).
template <size_t bytes, class Change>
[[gnu::always_inline]] inline void change_columns(const Rows& rows, size_t offset, Columns to, Change change) {
    static_assert(bytes % 16 == 0);
    for (int i = 0; i < static_cast<int>(bytes / 16); ++i) {
        I16x c[4];
        i_columns(rows, offset + 16 * static_cast<size_t>(i), c);
        for (int j = 0; j < 4; ++j) to.store(4 * i + j, change(4 * i + j, c[j]));
    }
}

template <size_t bytes>
[[gnu::always_inline]] inline void copy_columns(const Rows& rows, size_t offset, Columns to) {
    change_columns<bytes>(rows, offset, to, [](int, I16x c) { return c; });
}

// The column of the four bytes at `offset`. The 12 bytes behind them, or before them, are read as well and must belong to the block.
[[gnu::always_inline]] inline I16x first_column(const Rows& rows, size_t offset) {
    I16x c[4];
    i_columns(rows, offset, c);
    return c[0];
}
[[gnu::always_inline]] inline I16x last_column(const Rows& rows, size_t offset) {
    I16x c[4];
    i_columns(rows, offset - 12, c);
    return c[3];
}

// ---- Rearranging the bits of each dword. The place of a bit is a number of five bits, b4 .. b0, and every order that tiles.h names is an
// exchange of some of these: swap<a, b> moves each bit to the place with bits a and b exchanged. Below, places are written by their bits.
// ----

template <int a, int b>
inline I16x swap(I16x x) {
    static_assert(a > b);
    constexpr int shift = (1 << a) - (1 << b);
    constexpr uint32_t mask = [] {
        uint32_t m = 0;
        for (int place = 0; place < 32; ++place)
            if ((place >> a & 1) == 0 && (place >> b & 1) == 1) m |= 1u << place;
        return m;
    }();
    const I16x differ = (i_shr<shift>(x) ^ x) & i_set(static_cast<int32_t>(mask));
    return x ^ differ ^ i_shl<shift>(differ);
}

// signs': 4j + i, where j = 2g + h, to 8i + g + 4h: g g h i i to i i h g g.
inline I16x spread_signs(I16x from) {
    static_assert(kSignBit[1] == 4 && kSignBit[2] == 1 && kSignBit[4] == 2);
    return swap<3, 0>(swap<4, 1>(from));
}

// From four times 7 signs, and four more bits that stay where they are.
inline I16x spread_seven_signs(I16x from) {
    const I16x g01 = (from & i_set(0x7f)) | (i_shl<1>(from) & i_set(0x7f00));
    const I16x g23 = (i_shl<2>(from) & i_set(0x7f0000)) | (i_shl<3>(from) & i_set(0x7f000000));
    return i_select(0xf0000000, from, spread_signs(g01 | g23));
}

// qh' of the types of 32: 4j + i to 8i + j: j j j i i to i i j j j. The signs' order leaves the bits of j in the order 0 2 1.
inline I16x spread_fifth_bits(I16x from) {
    return swap<1, 0>(swap<2, 1>(spread_signs(from)));
}

// scales': nibble s to 8 (s % 4) + 4 (s / 4), so bit 2 of s goes last.
inline I16x part_nibbles(I16x from) {
    return swap<3, 2>(swap<4, 3>(from));
}

// scales_h': of the place s s s u, the bits of s in the order 0 2 1, and then nibbles change places.
inline I16x spread_pairs(I16x from) {
    static_assert(kScalesHigh[0] == 4 && kScalesHigh[1] == 12 && kScalesHigh[2] == 6 && kScalesHigh[4] == 0);
    const I16x pairs = swap<2, 1>(swap<3, 1>(from));
    return i_select(0x0f0f0f0f, i_shr<4>(pairs), i_shl<4>(pairs));
}

// qh' of IQ2_S: of run k, group 2h + b, k k h b u to h k k b u; of IQ3_S, index 4a + 2h + b, k k a h b to h k k a b.
inline I16x part_two_bits(I16x from) {
    return swap<3, 2>(swap<4, 2>(from));
}
inline I16x part_one_bits(I16x from) {
    return swap<2, 1>(swap<3, 1>(swap<4, 1>(from)));
}

// ---- One block of 16 rows, by type ----

template <class B>
void tile_nibbles(const Rows& rows, Columns body, std::byte* ends) {
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body);
    const I16x first = first_column(rows, 0);
    offsetof(B, qs) == 4 ? i_store_halves(ends, first) : i_store_low_halves(ends, first);
}

void tile_q5_0(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockQ5_0;
    I16x c[4];  // d qh0 qh1, qh2 qh3 ..
    i_columns(rows, 0, c);
    body.store(0, spread_fifth_bits(i_shr<16>(c[0]) | i_shl<16>(c[1])));
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body + 1);
    i_store_low_halves(ends, c[0]);
}

void tile_q5_1(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockQ5_1;
    I16x c[4];  // d m, qh
    i_columns(rows, 0, c);
    body.store(0, spread_fifth_bits(c[1]));
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body + 1);
    i_store_halves(ends, c[0]);
}

void tile_q8_0(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockQ8_0;
    const I16x signs = i_set(static_cast<int32_t>(0x80808080u));
    change_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body, [&](int, I16x c) { return c ^ signs; });
    i_store_low_halves(ends, first_column(rows, offsetof(B, d)));
}

void tile_mxfp4(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockMXFP4;
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body);
    i_store_bytes(reinterpret_cast<int8_t*>(ends), first_column(rows, offsetof(B, e)));
}

void tile_q2_k(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockQ2_K;
    copy_columns<sizeof(B::scales)>(rows, offsetof(B, scales), body);
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body + 4);
    i_store_halves(ends, last_column(rows, offsetof(B, d)));
}

void tile_q3_k(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockQ3_K;
    I16x c[4];  // the end of qs, scales and d: one half-word off
    i_columns(rows, offsetof(B, scales) - 2, c);
    for (int i = 0; i < 3; ++i) body.store(i, i_shr<16>(c[i]) | i_shl<16>(c[i + 1]));
    copy_columns<sizeof(B::hmask)>(rows, offsetof(B, hmask), body + 3);
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body + 11);
    i_store_low_halves(ends, i_shr<16>(c[3]));
}

// d dmin and scales of Q4_K and Q5_K.
inline void tile_scales(const Rows& rows, Columns body, std::byte* ends) {
    I16x c[4];
    i_columns(rows, 0, c);
    i_store_halves(ends, c[0]);
    for (int i = 0; i < 3; ++i) body.store(i, c[i + 1]);
}

void tile_q4_k(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockQ4_K;
    tile_scales(rows, body, ends);
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body + 3);
}

void tile_q5_k(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockQ5_K;
    tile_scales(rows, body, ends);
    copy_columns<sizeof(B::qh)>(rows, offsetof(B, qh), body + 3);
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body + 11);
}

void tile_q6_k(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockQ6_K;
    copy_columns<sizeof(B::scales)>(rows, offsetof(B, scales), body);
    copy_columns<sizeof(B::ql)>(rows, offsetof(B, ql), body + 4);
    copy_columns<sizeof(B::qh)>(rows, offsetof(B, qh), body + 36);
    i_store_low_halves(ends, i_shr<16>(last_column(rows, offsetof(B, d) - 2)));
}

void tile_iq4_xs(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockIQ4_XS;
    I16x c[4];  // d scales_h, scales_l
    i_columns(rows, 0, c);
    body.store(0, part_nibbles(c[1]));
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body + 1);
    i_store_halves(ends, i_select(0xffff, c[0], i_shl<16>(spread_pairs(i_shr<16>(c[0])))));
}

void tile_iq2_xxs(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockIQ2_XXS;
    change_columns<sizeof(B::runs)>(rows, offsetof(B, runs), body, [](int j, I16x c) { return j % 2 ? spread_seven_signs(c) : c; });
    i_store_low_halves(ends, first_column(rows, offsetof(B, d)));
}

// A dword of two groups of IQ2_XS, 9 bits of index and 7 of signs each, to one of their bytes of low bits, signs, and ninth bits.
inline I16x low_bytes(I16x groups) {
    return (groups & i_set(0xff)) | (i_shr<8>(groups) & i_set(0xff00));
}
inline I16x sign_bytes(I16x groups) {
    return (i_shr<9>(groups) & i_set(0x7f)) | (i_shr<17>(groups) & i_set(0x7f00));
}
inline I16x ninth_bits(I16x groups) {
    return (i_shr<8>(groups) & i_set(1)) | (i_shr<23>(groups) & i_set(2));
}

void tile_iq2_xs(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockIQ2_XS;
    I16x c[4];
    for (int i = 0; i < 4; ++i) {
        i_columns(rows, offsetof(B, qs) + 16 * static_cast<size_t>(i), c);
        for (int run = 0; run < 2; ++run) {
            const I16x g01 = c[2 * run], g23 = c[2 * run + 1];
            const int j = 4 * i + 2 * run;
            body.store(j, low_bytes(g01) | i_shl<16>(low_bytes(g23)));
            const I16x signs = spread_signs(sign_bytes(g01) | i_shl<16>(sign_bytes(g23)));
            body.store(j + 1, signs | i_shl<28>(ninth_bits(g01)) | i_shl<30>(ninth_bits(g23)));
        }
    }
    i_columns(rows, offsetof(B, scales) - 8, c);
    for (int i = 0; i < 2; ++i) body.store(16 + i, part_nibbles(c[2 + i]));
    i_store_low_halves(ends, first_column(rows, offsetof(B, d)));
}

void tile_iq2_s(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockIQ2_S;
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body);
    change_columns<sizeof(B::signs)>(rows, offsetof(B, signs), body + 8, [](int, I16x c) { return spread_signs(c); });
    I16x c[4];  // qh, scales
    i_columns(rows, offsetof(B, qh), c);
    for (int i = 0; i < 2; ++i) {
        body.store(16 + i, part_two_bits(c[i]));
        body.store(18 + i, part_nibbles(c[2 + i]));
    }
    i_store_low_halves(ends, first_column(rows, offsetof(B, d)));
}

void tile_iq3_xxs(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockIQ3_XXS;
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body);
    change_columns<sizeof(B::signs)>(rows, offsetof(B, signs), body + 16, [](int, I16x c) { return spread_seven_signs(c); });
    i_store_low_halves(ends, first_column(rows, offsetof(B, d)));
}

void tile_iq3_s(const Rows& rows, Columns body, std::byte* ends) {
    using B = BlockIQ3_S;
    copy_columns<sizeof(B::qs)>(rows, offsetof(B, qs), body);
    I16x c[4];  // qh, the first signs
    i_columns(rows, offsetof(B, qh), c);
    for (int i = 0; i < 2; ++i) body.store(16 + i, part_one_bits(c[i]));
    change_columns<sizeof(B::signs)>(rows, offsetof(B, signs), body + 18, [](int, I16x c_) { return spread_signs(c_); });
    body.store(26, part_nibbles(last_column(rows, offsetof(B, scales))));
    i_store_low_halves(ends, first_column(rows, offsetof(B, d)));
}

// Floats have no blocks: 16 bytes of each row are a step.
constexpr TileShape kFourF32{4, 4 * kColumn, 0}, kEightHalves{8, 4 * kColumn, 0};

void tile_f32(const Rows& rows, Columns body, std::byte*) {
    copy_columns<16>(rows, 0, body);
}

void tile_f16(const Rows& rows, Columns body, std::byte*) {
    I16x c[4];
    i_columns(rows, 0, c);
    for (int j = 0; j < 4; ++j) body.store(j, i_halves(c[j]));
}

// ---- A matrix ----

using TileBlock = void (*)(const Rows& rows, Columns body, std::byte* ends);

constexpr int kMostBlockBytes = 256;
static_assert(sizeof(BlockQ6_K) <= kMostBlockBytes);  // the largest

// Asks for bytes [begin, end) of n rows, where a line begins among them: those of the next tile, while one is written. 16 rows are more
// streams than the hardware follows, and they end soon. Without it and kWriteAhead: Q4_0 10 GB/s, Q4_K 16, Q8_0 12, IQ2_XXS 7.
inline void ask_for_rows(const std::byte* first, size_t stride, int64_t n, size_t begin, size_t end) {
    for (size_t at = (begin + 63) / 64 * 64; at < end; at += 64)
        for (int64_t r = 0; r < n; ++r) __builtin_prefetch(first + static_cast<size_t>(r) * stride + at, 0, 2);
}

// How far ahead of the body being written its lines are asked for, in bytes.
constexpr int kWriteAhead = 4096;

// All blocks of all tiles. Rows that a tile has beyond the matrix are zeros, in every type a block that decodes to zeros. Floats, of
// `element` bytes, that are left over after whole steps are moved one by one.
template <TileBlock tile_block, size_t element = 0>
void run(TileShape shape, const std::byte* src, size_t stride, int64_t rows, int64_t cols, std::byte* dst, TileStores stores) {
    const int64_t n_blocks = cols / shape.len;
    const size_t block_bytes = static_cast<size_t>((shape.body + shape.ends) / kTileRows);
    std::byte padded[kTileRows * kMostBlockBytes];  // cleared where it is used: a call may be for two tiles only
    for (int64_t row = 0; row < rows; row += kTileRows) {
        const std::byte* from = src + static_cast<size_t>(row) * stride;
        const int64_t real = rows - row < kTileRows ? rows - row : kTileRows;
        const auto rows_at = [&](size_t bytes) -> Rows {
            if (real == kTileRows) return {from, stride};
            std::memset(padded, 0, sizeof padded);
            for (int64_t r = 0; r < real; ++r) std::memcpy(padded + r * kMostBlockBytes, from + static_cast<size_t>(r) * stride, bytes);
            return {padded, kMostBlockBytes};
        };
        const std::byte* next = from + kTileRows * stride;
        const int64_t n_next = rows - row - kTileRows < kTileRows ? rows - row - kTileRows : kTileRows;
        std::byte* ends = dst + n_blocks * shape.body;
        const bool past = stores == TileStores::past && reinterpret_cast<uintptr_t>(dst) % 64 == 0;
        for (int64_t b = 0; b < n_blocks; ++b, from += block_bytes, dst += shape.body, ends += shape.ends) {
            ask_for_rows(next, stride, n_next, static_cast<size_t>(b) * block_bytes, static_cast<size_t>(b + 1) * block_bytes);
            if (!past) {
                for (int at = 0; at < shape.body; at += kColumn) __builtin_prefetch(dst + kWriteAhead + at, 1);
            }
            tile_block(rows_at(block_bytes), {dst, past}, ends);
        }
        dst = ends;
        if constexpr (element > 0) {
            for (int64_t k = n_blocks * shape.len; k < cols; ++k, from += element) {
                const Rows all = rows_at(element);
                for (int r = 0; r < kTileRows; ++r, dst += element) std::memcpy(dst, all.at(r, 0), element);
            }
        }
    }
    if (stores == TileStores::past) stream_fence();
}

}  // namespace

void tile_rows(Type type, const std::byte* src, size_t stride, int64_t rows, int64_t cols, std::byte* dst, TileStores stores) {
    switch (type) {
        case Type::f32:
            return run<tile_f32, 4>(kFourF32, src, stride, rows, cols, dst, stores);
        case Type::f16:
            return run<tile_f16, 2>(kEightHalves, src, stride, rows, cols, dst, stores);
        case Type::bf16:
            return run<tile_f16, 2>(kEightHalves, src, stride, rows, cols, dst, stores);
        case Type::q4_0:
            return run<tile_nibbles<BlockQ4_0>>(kTileQ4_0, src, stride, rows, cols, dst, stores);
        case Type::q4_1:
            return run<tile_nibbles<BlockQ4_1>>(kTileQ4_1, src, stride, rows, cols, dst, stores);
        case Type::q5_0:
            return run<tile_q5_0>(kTileQ5_0, src, stride, rows, cols, dst, stores);
        case Type::q5_1:
            return run<tile_q5_1>(kTileQ5_1, src, stride, rows, cols, dst, stores);
        case Type::q8_0:
            return run<tile_q8_0>(kTileQ8_0, src, stride, rows, cols, dst, stores);
        case Type::iq4_nl:
            return run<tile_nibbles<BlockIQ4_NL>>(kTileIQ4_NL, src, stride, rows, cols, dst, stores);
        case Type::mxfp4:
            return run<tile_mxfp4>(kTileMXFP4, src, stride, rows, cols, dst, stores);
        case Type::q2_k:
            return run<tile_q2_k>(kTileQ2_K, src, stride, rows, cols, dst, stores);
        case Type::q3_k:
            return run<tile_q3_k>(kTileQ3_K, src, stride, rows, cols, dst, stores);
        case Type::q4_k:
            return run<tile_q4_k>(kTileQ4_K, src, stride, rows, cols, dst, stores);
        case Type::q5_k:
            return run<tile_q5_k>(kTileQ5_K, src, stride, rows, cols, dst, stores);
        case Type::q6_k:
            return run<tile_q6_k>(kTileQ6_K, src, stride, rows, cols, dst, stores);
        case Type::iq4_xs:
            return run<tile_iq4_xs>(kTileIQ4_XS, src, stride, rows, cols, dst, stores);
        case Type::iq2_xxs:
            return run<tile_iq2_xxs>(kTileIQ2_XXS, src, stride, rows, cols, dst, stores);
        case Type::iq2_xs:
            return run<tile_iq2_xs>(kTileIQ2_XS, src, stride, rows, cols, dst, stores);
        case Type::iq2_s:
            return run<tile_iq2_s>(kTileIQ2_S, src, stride, rows, cols, dst, stores);
        case Type::iq3_xxs:
            return run<tile_iq3_xxs>(kTileIQ3_XXS, src, stride, rows, cols, dst, stores);
        case Type::iq3_s:
            return run<tile_iq3_s>(kTileIQ3_S, src, stride, rows, cols, dst, stores);
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
