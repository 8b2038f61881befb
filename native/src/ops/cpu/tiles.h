// How 16 rows of a weight matrix lie in memory, and the float arithmetic each type's kernel performs. tile.cpp writes this layout, the
// matmul_*.cpp files and a device's kernels (cuda/weights.cuh) read it; nobody else may know it.
//
// A tile is a permutation of the bits of 16 GGUF rows (Q8_0 codes also have their sign bit flipped). Rows become lanes: the unit is
// the *dword column*, 16 dwords in a row, lane r holding 4 consecutive bytes of row r's block. GGUF's nibble order makes this ideal for an
// 8-bit dot product: the low nibbles of a dword are 4 consecutive weights, the high nibbles 4 consecutive weights a little further.
//
//   tile   | body of block 0 | body of block 1 | .. | body of block n-1 | ends 0 | ends 1 | .. | ends n-1 |
//
//   body   dword columns, 64 bytes each. Bodies come first and together so that they all start on a cache line.
//   ends   the 16-bit (or 8-bit) scales: for each of them [16 rows]; 32, 64 or 16 bytes per block.
//
//   type     body: dword columns of                                    ends
//   F32      x (a block is one k)                                      -
//   F16 BF16 -                                                         x[16]
//   Q4_0     qs 4                                                      d
//   Q4_1     qs 4                                                      d m
//   Q5_0     qh' 1, qs 4                                               d
//   Q5_1     qh' 1, qs 4                                               d m
//   Q8_0     qs ^ 0x80 8                                               d
//   IQ4_NL   qs 4                                                      d
//   MXFP4    qs 4                                                      e (8 bits)
//   Q2_K     scales 4, qs 16                                           d dmin
//   Q3_K     scales 3, hmask 8, qs 16                                  d
//   Q4_K     scales 3, qs 32                                           d dmin
//   Q5_K     scales 3, qh 8, qs 32                                     d dmin
//   Q6_K     scales 4, ql 32, qh 16                                    d
//   IQ4_XS   scales_l' 1, qs 32                                        d scales_h'
//   IQ2_XXS  (grid 1, signs' 1) of each run                            d
//   IQ2_XS   (grid' 1, signs' 1) of each run, scales' 2                d
//   IQ2_S    qs 8, signs' 8, qh' 2, scales' 2                          d
//   IQ3_XXS  qs 16, signs' 8                                           d
//   IQ3_S    qs 16, qh' 2, signs' 8, scales' 1                         d
//
//   qh'       bit 4j + i of qh (weight 4j + i of 32) moves to bit 8i + j, so that (qh' >> j) & 0x01010101 are the bits of dword j.
//   scales_l' nibble s moves to bits 8 (s % 4) + 4 (s / 4): low nibbles of the bytes are scales 0..3, high nibbles scales 4..7.
//   scales_h' the bit pair of scale s moves to bit kScalesHigh[s], where two shifts spread it over the bytes (matmul_256.cpp).
//
//   And in the types with a codebook, whose runs have 32 weights in 4 groups of 8:
//   scales'   each dword as scales_l'
//   signs'    the sign of weight 4j + i of a run (column j) moves to bit 8i + kSignBit[j]. Where a group has 7 signs only, this leaves
//             bits 28..31 free; there stand the scale (IQ2_XXS, IQ3_XXS) or, of groups 0..3, bit 8 of the index (IQ2_XS).
//   grid'     low bytes of the indices of groups 0..3
//   qh'       of IQ2_S and IQ3_S, a dword per 4 runs: the high bits (2 or 1) of index 4a + 2h + b of run k are number 2a + b of those that
//             begin at bit 16 h + 8 (k / 2) + 4 (k % 2). So one shift brings those of two indices, h = 0 and 1, to their low bytes.
//
// Arithmetic. dx is the scale of the token's activations in the block, x their int8 codes; every integer is exact, so its order of
// summation is free; every line below is one float operation or a conversion from int32 (round to nearest even), in this order.
// For each block, ascending:
//
//   floats               acc = fma(w, x, acc)                                          per k
//   Q4_0 Q5_0 Q8_0       I = sum code * x, code signed
//   IQ4_NL MXFP4         acc = fma(d * dx, float(I), acc)
//   Q4_1 Q5_1            I = sum q * x, q unsigned;  s = dx * float(sum x)
//                        acc = fma(d * dx, float(I), acc);  acc = fma(m, s, acc)
//   Q3_K Q6_K IQ4_XS     I = sum over sub-blocks of scale * sum code * x
//                        acc = fma(d * dx, float(I), acc)
//   IQ2_* IQ3_*          the same with scale = 2 s + 1, code = +- magnitude and, for d, d / 8 (IQ2), d / 4 (IQ3_XXS) or d (IQ3_S)
//   Q2_K Q4_K Q5_K       I = sum of scale * sum q * x;  M = sum of min * sum x
//                        acc = fma(dmin * dx, float(-M), acc);  acc = fma(d * dx, float(I), acc)
//
// then y = acc, + bias, and for accumulate y_old + that.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"
#include "quant/blocks.h"

namespace moepic::ops {

// Bytes of a block of 16 rows: its body and its ends.
struct TileShape {
    int len = 1;
    int body = 0;
    int ends = 0;
};

// ends: bytes per row that go to the end of the tile.
template <class Block>
constexpr TileShape tile_shape(int ends_per_row) {
    return {Block::len, kTileRows * (static_cast<int>(sizeof(Block)) - ends_per_row), kTileRows * ends_per_row};
}

inline constexpr TileShape kTileF32 = tile_shape<BlockF32>(0);
inline constexpr TileShape kTileF16 = tile_shape<BlockF16>(2);
inline constexpr TileShape kTileBF16 = tile_shape<BlockBF16>(2);
inline constexpr TileShape kTileQ4_0 = tile_shape<BlockQ4_0>(2);
inline constexpr TileShape kTileQ4_1 = tile_shape<BlockQ4_1>(4);
inline constexpr TileShape kTileQ5_0 = tile_shape<BlockQ5_0>(2);
inline constexpr TileShape kTileQ5_1 = tile_shape<BlockQ5_1>(4);
inline constexpr TileShape kTileQ8_0 = tile_shape<BlockQ8_0>(2);
inline constexpr TileShape kTileIQ4_NL = tile_shape<BlockIQ4_NL>(2);
inline constexpr TileShape kTileMXFP4 = tile_shape<BlockMXFP4>(1);
inline constexpr TileShape kTileQ2_K = tile_shape<BlockQ2_K>(4);
inline constexpr TileShape kTileQ3_K = tile_shape<BlockQ3_K>(2);
inline constexpr TileShape kTileQ4_K = tile_shape<BlockQ4_K>(4);
inline constexpr TileShape kTileQ5_K = tile_shape<BlockQ5_K>(4);
inline constexpr TileShape kTileQ6_K = tile_shape<BlockQ6_K>(2);
inline constexpr TileShape kTileIQ4_XS = tile_shape<BlockIQ4_XS>(4);
inline constexpr TileShape kTileIQ2_XXS = tile_shape<BlockIQ2_XXS>(2);
inline constexpr TileShape kTileIQ2_XS = tile_shape<BlockIQ2_XS>(2);
inline constexpr TileShape kTileIQ2_S = tile_shape<BlockIQ2_S>(2);
inline constexpr TileShape kTileIQ3_XXS = tile_shape<BlockIQ3_XXS>(2);
inline constexpr TileShape kTileIQ3_S = tile_shape<BlockIQ3_S>(2);

inline constexpr int kColumn = 4 * kTileRows;  // bytes of a dword column
static_assert(kTileQ6_K.body == 52 * kColumn && kTileQ3_K.body == 27 * kColumn && kTileQ5_0.body == 5 * kColumn);

// Where the bit pair of scale s of IQ4_XS lies in scales_h'.
inline constexpr int kScalesHigh[8] = {4, 12, 6, 14, 0, 8, 2, 10};

// Where the signs of column j of a run lie in each byte of signs'. The last weight of a group of 8 is in byte 3 of an odd column, so what a
// type with 7 signs leaves free is one nibble, and the last signs, folded from the others, come out as one.
inline constexpr int kSignBit[8] = {0, 4, 1, 5, 2, 6, 3, 7};

}  // namespace moepic::ops
