// One granule of one expert on the CPU, for the tokens that chose the expert: down quantized(act(gate x) * up x), in two halves, because a
// prompt reduces over granules between them. Allocates nothing; knows no threads, and not where the granule lies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "expert/strip.h"
#include "ops/ops.h"

namespace moepic {

// What the tokens of one expert bring along.
struct GranuleInput {
    // Quantized activations of the batch by ops::ActKind; row r at data + r * stride. Kinds that gate and up don't want may be null.
    const std::byte* acts[3] = {};
    size_t act_stride[3] = {};
    const int32_t* rows = nullptr;        // [n] rows of acts
    const float* entry_weight = nullptr;  // [n] multiplies gate x and up x; null: nothing does
    int64_t n = 0;
    ops::GluKind glu{};
};

// Of one thread. gate and up: [n][granule] floats; kernel: ops::kMatmulScratchBytes.
struct GranuleScratch {
    float *gate = nullptr, *up = nullptr;
    std::byte* kernel = nullptr;
};

// Bytes of one token's intermediate of one granule, as down wants it.
inline size_t intermediate_row_bytes(const StripLayout& layout) noexcept {
    return ops::act_bytes(ops::act_kind(layout.down_type), layout.granule);
}

// scratch.gate = act(gate x) * up x.
void activate_granule(const ops::Kernels& kernels, const StripLayout& layout, const std::byte* granule, const GranuleInput& input,
                      const GranuleScratch& scratch);
// Rows of scratch.gate as down wants them, `stride` bytes apart.
void quantize_granule(const ops::Kernels& kernels, const StripLayout& layout, int64_t n, const GranuleScratch& scratch, std::byte* out,
                      size_t stride);
// y[i] = down intermediate[i], rows `stride` bytes and `y_stride` floats apart.
void project_granule(const ops::Kernels& kernels, const StripLayout& layout, const std::byte* granule, int64_t n,
                     const std::byte* intermediate, size_t stride, float* y, int64_t y_stride, std::byte* kernel_scratch);

}  // namespace moepic
