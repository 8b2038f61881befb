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

// Bit 4j + i to bit 8i + j, for the 16 dwords of a column (qh').
inline void spread_fifth_bits(std::byte* column) {
    const I16x from = i_load(column), ones = i_set(0x01010101);
    I16x to = i_set(0);
    for (int j = 0; j < 8; ++j) {
        // A nibble times 1 + 2^7 + 2^14 + 2^21 has bit i of it at bit 8i; the product's other bits are masked away.
        const I16x nibble = i_shr_by(from, 4 * j) & i_set(15);
        to = to | i_shl_by((nibble * i_set(0x00204081)) & ones, j);
    }
    i_store(column, to);
}

template <class B, bool with_min>
void tile_nibbles(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    columns({{offsetof(B, qs), sizeof(B::qs)}}, rows, body);
    halves(0, rows, ends);
    if constexpr (with_min) halves(2, rows, ends + 2 * kTileRows);
}

template <class B, bool with_min>
void tile_five_bits(const std::byte* const (&rows)[kTileRows], std::byte* body, std::byte* ends) {
    columns({{offsetof(B, qh), sizeof(B::qh)}, {offsetof(B, qs), sizeof(B::qs)}}, rows, body);
    spread_fifth_bits(body);
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
    I16x new_low = i_set(0), new_high = i_set(0);
    for (int s = 0; s < 8; ++s) {
        new_low = new_low | i_shl_by(i_shr_by(low, 4 * s) & i_set(15), 8 * (s % 4) + 4 * (s / 4));
        new_high = new_high | i_shl_by(i_shr_by(high, 2 * s) & i_set(3), kScalesHigh[s]);
    }
    i_store(body, new_low);
    int32_t words[kTileRows];
    i_store(words, new_high);
    for (int r = 0; r < kTileRows; ++r) {
        const uint16_t word = static_cast<uint16_t>(words[r]);
        std::memcpy(ends + 2 * kTileRows + 2 * r, &word, 2);
    }
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
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
