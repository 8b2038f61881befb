// The kernels of this folder that kernels.cpp puts into the table next to those of vector.h, attention.h and recurrence.h.
// Included only by sources that are compiled once per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace moepic::ops::MOEPIC_ISA {

void tile_rows(Type type, const std::byte* src, size_t row_stride, int64_t rows, int64_t cols, std::byte* dst, TileStores stores);
void quantize_act(ActKind kind, const float* x, int64_t cols, std::byte* out);
void matmul(const MatmulJob& job);
int64_t multiply_codes(int64_t rounds, int32_t* sum);

// matmul by family: each answers false for a type that is not its own.
bool matmul_float(const MatmulJob& job);
bool matmul_32(const MatmulJob& job);
bool matmul_256(const MatmulJob& job);
bool matmul_grid(const MatmulJob& job);

}  // namespace moepic::ops::MOEPIC_ISA
