// GGUF rows to tiles (tiles.h draws them). Runs once over a whole model at load, so it should keep up with memory: each byte is read once,
// as a dword of its row, and written once to a tile block that stays in L1 while it is filled.
#include <cstring>

#include "ops/cpu/bytes.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/tiles.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

// A field of a block that becomes dword columns, in the order of the tile.
struct Field {
    size_t offset;
    size_t bytes;
};

// Body of one block of 16 rows: rows[r] points at row r's block.
template <size_t n_fields>
inline void columns(const Field (&fields)[n_fields], const std::byte* const (&rows)[kTileRows], std::byte* body) {
    for (int r = 0; r < kTileRows; ++r) {
        std::byte* to = body + 4 * r;
        for (const Field& field : fields)
            for (size_t i = 0; i < field.bytes; i += 4, to += kColumn) std::memcpy(to, rows[r] + field.offset + i, 4);
    }
}

// A 16-bit field of each row, side by side.
inline void halves(size_t offset, const std::byte* const (&rows)[kTileRows], std::byte* ends) {
    for (int r = 0; r < kTileRows; ++r) std::memcpy(ends + 2 * r, rows[r] + offset, 2);
}

// Bit 4j + i of each dword to bit 8i + at[j].
inline I16x spread_bits(I16x from, const int (&at)[8]) {
    I16x to = i_set(0);
    for (int j = 0; j < 8; ++j) {
        // A nibble times 1 + 2^7 + 2^14 + 2^21 has bit i of it at bit 8i; the product's other bits are masked away.
        const I16x nibble = i_shr_by(from, 4 * j) & i_set(15);
        to = to | i_shl_by((nibble * i_set(0x00204081)) & i_set(0x01010101), at[j]);
    }
    return to;
}

// Nibble s of 8 to bits 8 (s % 4) + 4 (s / 4).
inline I16x part_nibbles(I16x from) {
    I16x to = i_set(0);
    for (int s = 0; s < 8; ++s) to = to | i_shl_by(i_shr_by(from, 4 * s) & i_set(15), 8 * (s % 4) + 4 * (s / 4));
    return to;
}

inline constexpr int kInOrder[8] = {0, 1, 2, 3, 4, 5, 6, 7};  // qh' of the 32-weight types

template <class B, bool with_min>
void tile_nibbles(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    columns({{offsetof(B, qs), sizeof(B::qs)}}, rows, body);
    halves(0, rows, ends);
    if constexpr (with_min) halves(2, rows, ends + 2 * kTileRows);
}

template <class B, bool with_min>
void tile_five_bits(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    columns({{offsetof(B, qh), sizeof(B::qh)}, {offsetof(B, qs), sizeof(B::qs)}}, rows, body);
    i_store(body, spread_bits(i_load(body), kInOrder));
    halves(0, rows, ends);
    if constexpr (with_min) halves(2, rows, ends + 2 * kTileRows);
}

void tile_q8_0(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockQ8_0;
    columns({{offsetof(B, qs), sizeof(B::qs)}}, rows, body);
    const I16x signs = i_set(static_cast<int32_t>(0x80808080u));
    for (int i = 0; i < 8; ++i) i_store(body + i * kColumn, i_load(body + i * kColumn) ^ signs);
    halves(offsetof(B, d), rows, ends);
}

void tile_mxfp4(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockMXFP4;
    columns({{offsetof(B, qs), sizeof(B::qs)}}, rows, body);
    for (int r = 0; r < kTileRows; ++r) ends[r] = rows[r][offsetof(B, e)];
}

void tile_q2_k(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockQ2_K;
    columns({{offsetof(B, scales), sizeof(B::scales)}, {offsetof(B, qs), sizeof(B::qs)}}, rows, body);
    halves(offsetof(B, d), rows, ends);
    halves(offsetof(B, dmin), rows, ends + 2 * kTileRows);
}

void tile_q3_k(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockQ3_K;
    columns({{offsetof(B, scales), sizeof(B::scales)}, {offsetof(B, hmask), sizeof(B::hmask)}, {offsetof(B, qs), sizeof(B::qs)}}, rows,
            body);
    halves(offsetof(B, d), rows, ends);
}

void tile_q4_k(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockQ4_K;
    columns({{offsetof(B, scales), sizeof(B::scales)}, {offsetof(B, qs), sizeof(B::qs)}}, rows, body);
    halves(offsetof(B, d), rows, ends);
    halves(offsetof(B, dmin), rows, ends + 2 * kTileRows);
}

void tile_q5_k(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockQ5_K;
    columns({{offsetof(B, scales), sizeof(B::scales)}, {offsetof(B, qh), sizeof(B::qh)}, {offsetof(B, qs), sizeof(B::qs)}}, rows, body);
    halves(offsetof(B, d), rows, ends);
    halves(offsetof(B, dmin), rows, ends + 2 * kTileRows);
}

void tile_q6_k(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockQ6_K;
    columns({{offsetof(B, scales), sizeof(B::scales)}, {offsetof(B, ql), sizeof(B::ql)}, {offsetof(B, qh), sizeof(B::qh)}}, rows, body);
    halves(offsetof(B, d), rows, ends);
}

void tile_iq4_xs(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockIQ4_XS;
    columns({{offsetof(B, scales_l), sizeof(B::scales_l)}, {offsetof(B, qs), sizeof(B::qs)}}, rows, body);
    halves(offsetof(B, d), rows, ends);
    halves(offsetof(B, scales_h), rows, ends + 2 * kTileRows);
    const I16x low = i_load(body), high = i_load_u16(ends + 2 * kTileRows);
    I16x new_high = i_set(0);
    for (int s = 0; s < 8; ++s) new_high = new_high | i_shl_by(i_shr_by(high, 2 * s) & i_set(3), kScalesHigh[s]);
    i_store(body, part_nibbles(low));
    int32_t words[kTileRows];
    i_store(words, new_high);
    for (int r = 0; r < kTileRows; ++r) {
        const uint16_t word = static_cast<uint16_t>(words[r]);
        std::memcpy(ends + 2 * kTileRows + 2 * r, &word, 2);
    }
}

// signs' of a column with 8 signs to a byte.
inline void spread_signs(std::byte* column) {
    i_store(column, spread_bits(i_load(column), kSignBit));
}

// signs' of a column with four times 7 signs and four more bits, which stay where they are.
inline void spread_seven_signs(std::byte* column) {
    const I16x from = i_load(column);
    I16x bytes = i_set(0);
    for (int g = 0; g < 4; ++g) bytes = bytes | i_shl_by(i_shr_by(from, 7 * g) & i_set(127), 8 * g);
    i_store(column, spread_bits(bytes, kSignBit) | (from & i_set(static_cast<int32_t>(0xf0000000u))));
}

// qh' of a column with the high bits of the indices of four runs, n_bits of each: a byte per run in the file.
template <int n_bits>
inline void part_high_bits(std::byte* column) {
    const I16x from = i_load(column);
    I16x to = i_set(0);
    for (int k = 0; k < 4; ++k)
        for (int index = 0; index < 8 / n_bits; ++index) {
            const int half = index / 2 % 2, place = index % 2 + index / 4 * 2;
            const I16x bits = i_shr_by(from, 8 * k + n_bits * index) & i_set((1 << n_bits) - 1);
            to = to | i_shl_by(bits, 16 * half + 8 * (k / 2) + 4 * (k % 2) + n_bits * place);
        }
    i_store(column, to);
}

void tile_iq2_xxs(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockIQ2_XXS;
    columns({{offsetof(B, runs), sizeof(B::runs)}}, rows, body);
    for (int r = 0; r < 8; ++r) spread_seven_signs(body + (2 * r + 1) * kColumn);
    halves(offsetof(B, d), rows, ends);
}

void tile_iq2_xs(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockIQ2_XS;
    columns({{offsetof(B, qs), sizeof(B::qs)}, {offsetof(B, scales), sizeof(B::scales)}}, rows, body);
    for (int r = 0; r < 8; ++r, body += 2 * kColumn) {
        // Groups 0 and 1 in one dword, 2 and 3 in the next: 9 bits of index and 7 of signs each.
        const I16x pairs[2] = {i_load(body), i_load(body + kColumn)};
        I16x low = i_set(0), signs = i_set(0), high = i_set(0);
        for (int g = 0; g < 4; ++g) {
            const I16x group = i_shr_by(pairs[g / 2], 16 * (g % 2));
            low = low | i_shl_by(group & i_set(255), 8 * g);
            signs = signs | i_shl_by(i_shr<9>(group) & i_set(127), 8 * g);
            high = high | i_shl_by(i_shr<8>(group) & i_set(1), 28 + g);
        }
        i_store(body, low);
        i_store(body + kColumn, spread_bits(signs, kSignBit) | high);
    }
    for (int i = 0; i < 2; ++i) i_store(body + i * kColumn, part_nibbles(i_load(body + i * kColumn)));
    halves(offsetof(B, d), rows, ends);
}

void tile_iq2_s(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockIQ2_S;
    columns({{offsetof(B, qs), sizeof(B::qs)},
             {offsetof(B, signs), sizeof(B::signs)},
             {offsetof(B, qh), sizeof(B::qh)},
             {offsetof(B, scales), sizeof(B::scales)}},
            rows, body);
    for (int i = 8; i < 16; ++i) spread_signs(body + i * kColumn);
    for (int i = 16; i < 18; ++i) part_high_bits<2>(body + i * kColumn);
    for (int i = 18; i < 20; ++i) i_store(body + i * kColumn, part_nibbles(i_load(body + i * kColumn)));
    halves(offsetof(B, d), rows, ends);
}

void tile_iq3_xxs(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockIQ3_XXS;
    columns({{offsetof(B, qs), sizeof(B::qs)}, {offsetof(B, signs), sizeof(B::signs)}}, rows, body);
    for (int i = 16; i < 24; ++i) spread_seven_signs(body + i * kColumn);
    halves(offsetof(B, d), rows, ends);
}

void tile_iq3_s(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    using B = BlockIQ3_S;
    columns({{offsetof(B, qs), sizeof(B::qs)},
             {offsetof(B, qh), sizeof(B::qh)},
             {offsetof(B, signs), sizeof(B::signs)},
             {offsetof(B, scales), sizeof(B::scales)}},
            rows, body);
    for (int i = 16; i < 18; ++i) part_high_bits<1>(body + i * kColumn);
    for (int i = 18; i < 26; ++i) spread_signs(body + i * kColumn);
    i_store(body + 26 * kColumn, part_nibbles(i_load(body + 26 * kColumn)));
    halves(offsetof(B, d), rows, ends);
}

using TileBlock = void (*)(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends);

alignas(64) constexpr std::byte kZeros[256] = {};  // a block of any type that decodes to zeros

// All blocks of all tiles.
template <TileBlock tile_block>
void run(TileShape shape, const std::byte* src, size_t row_stride, int64_t rows, int64_t cols, std::byte* dst) {
    const int64_t n_blocks = cols / shape.len;
    const int64_t block_bytes = (shape.body + shape.ends) / kTileRows;
    for (int64_t first = 0; first < rows; first += kTileRows, dst += n_blocks * block_bytes * kTileRows) {
        std::byte* ends = dst + n_blocks * shape.body;
        for (int64_t b = 0; b < n_blocks; ++b) {
            const std::byte* at[kTileRows];
            for (int r = 0; r < kTileRows; ++r)
                at[r] = first + r < rows ? src + static_cast<size_t>(first + r) * row_stride + b * block_bytes : kZeros;
            tile_block(at, dst + b * shape.body, ends + b * shape.ends);
        }
    }
}

// Floats: a transposition of elements, in squares of 16 so that both sides stay in cache.
template <class T>
void run_floats(const std::byte* src, size_t row_stride, int64_t rows, int64_t cols, std::byte* dst) {
    for (int64_t first = 0; first < rows; first += kTileRows, dst += cols * kTileRows * static_cast<int64_t>(sizeof(T))) {
        T* to = reinterpret_cast<T*>(dst);
        for (int64_t k0 = 0; k0 < cols; k0 += 16) {
            const int64_t k1 = k0 + 16 < cols ? k0 + 16 : cols;
            for (int r = 0; r < kTileRows; ++r) {
                const bool real = first + r < rows;
                const std::byte* from = real ? src + static_cast<size_t>(first + r) * row_stride : nullptr;
                for (int64_t k = k0; k < k1; ++k) {
                    T value = 0;
                    if (real) std::memcpy(&value, from + k * static_cast<int64_t>(sizeof(T)), sizeof(T));
                    to[k * kTileRows + r] = value;
                }
            }
        }
    }
}

}  // namespace

void tile_rows(Type type, const std::byte* src, size_t stride, int64_t rows, int64_t cols, std::byte* dst) {
    switch (type) {
        case Type::f32:
            return run_floats<uint32_t>(src, stride, rows, cols, dst);
        case Type::f16:
            return run_floats<uint16_t>(src, stride, rows, cols, dst);
        case Type::bf16:
            return run_floats<uint16_t>(src, stride, rows, cols, dst);
        case Type::q4_0:
            return run<tile_nibbles<BlockQ4_0, false>>(kTileQ4_0, src, stride, rows, cols, dst);
        case Type::q4_1:
            return run<tile_nibbles<BlockQ4_1, true>>(kTileQ4_1, src, stride, rows, cols, dst);
        case Type::q5_0:
            return run<tile_five_bits<BlockQ5_0, false>>(kTileQ5_0, src, stride, rows, cols, dst);
        case Type::q5_1:
            return run<tile_five_bits<BlockQ5_1, true>>(kTileQ5_1, src, stride, rows, cols, dst);
        case Type::q8_0:
            return run<tile_q8_0>(kTileQ8_0, src, stride, rows, cols, dst);
        case Type::iq4_nl:
            return run<tile_nibbles<BlockIQ4_NL, false>>(kTileIQ4_NL, src, stride, rows, cols, dst);
        case Type::mxfp4:
            return run<tile_mxfp4>(kTileMXFP4, src, stride, rows, cols, dst);
        case Type::q2_k:
            return run<tile_q2_k>(kTileQ2_K, src, stride, rows, cols, dst);
        case Type::q3_k:
            return run<tile_q3_k>(kTileQ3_K, src, stride, rows, cols, dst);
        case Type::q4_k:
            return run<tile_q4_k>(kTileQ4_K, src, stride, rows, cols, dst);
        case Type::q5_k:
            return run<tile_q5_k>(kTileQ5_K, src, stride, rows, cols, dst);
        case Type::q6_k:
            return run<tile_q6_k>(kTileQ6_K, src, stride, rows, cols, dst);
        case Type::iq4_xs:
            return run<tile_iq4_xs>(kTileIQ4_XS, src, stride, rows, cols, dst);
        case Type::iq2_xxs:
            return run<tile_iq2_xxs>(kTileIQ2_XXS, src, stride, rows, cols, dst);
        case Type::iq2_xs:
            return run<tile_iq2_xs>(kTileIQ2_XS, src, stride, rows, cols, dst);
        case Type::iq2_s:
            return run<tile_iq2_s>(kTileIQ2_S, src, stride, rows, cols, dst);
        case Type::iq3_xxs:
            return run<tile_iq3_xxs>(kTileIQ3_XXS, src, stride, rows, cols, dst);
        case Type::iq3_s:
            return run<tile_iq3_s>(kTileIQ3_S, src, stride, rows, cols, dst);
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
