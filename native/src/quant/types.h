// The type table: GGUF type ids, names, block lengths and block bytes, derived from the structs in blocks.h, which is the one
// source of sizes. Knows nothing of files, tensors or kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moepic {

// Numbers are GGUF's (ggml type ids).
enum class Type : uint32_t {
    f32 = 0,
    f16 = 1,
    q4_0 = 2,
    q4_1 = 3,
    q5_0 = 6,
    q5_1 = 7,
    q8_0 = 8,
    q2_k = 10,
    q3_k = 11,
    q4_k = 12,
    q5_k = 13,
    q6_k = 14,
    iq2_xxs = 16,
    iq2_xs = 17,
    iq3_xxs = 18,
    iq4_nl = 20,
    iq3_s = 21,
    iq2_s = 22,
    iq4_xs = 23,
    bf16 = 30,
    mxfp4 = 39,
};

struct TypeInfo {
    Type type;
    const char* name;      // GGUF letters: "Q4_K"
    uint32_t block_len;    // weights per block; 1 for floats
    uint32_t block_bytes;  // bytes per block
    // Decode n weights (a multiple of block_len) to float32, bit-equal to gguf's dequantizers. Blocks need no alignment.
    void (*decode)(const std::byte* blocks, float* out, int64_t n);
    // Encode n weights (a multiple of block_len) of one row; `importance` is null or n non-negative weights of the squared error.
    // Null where this build has no encoder.
    void (*encode)(const float* in, const float* importance, std::byte* blocks, int64_t n);
};

// Null for an id this build does not know.
const TypeInfo* find_type(uint32_t id) noexcept;
// For ids already checked; asserts.
const TypeInfo& type_info(Type type) noexcept;
// Null when no type has this name (case-insensitive).
const TypeInfo* find_type_by_name(const char* name) noexcept;

// Bytes of `cols` weights; cols must be a multiple of the block length.
inline size_t row_bytes(Type type, int64_t cols) noexcept {
    const TypeInfo& info = type_info(type);
    return static_cast<size_t>(cols / info.block_len) * info.block_bytes;
}

}  // namespace moepic
