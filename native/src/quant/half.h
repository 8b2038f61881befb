// 16-bit and 8-bit floats as plain integers: IEEE binary16, bfloat16 and E8M0, to and from float32.
// Portable, branch-free enough to vectorise, exact for subnormals, infinities and NaN; rounding is to nearest, ties to even.
// Knows no blocks. The floating-point environment must be the default one (round to nearest); flush-to-zero modes do no harm in the
// binary16 paths, because no float32 subnormal takes part in them.
#pragma once

#include <bit>
#include <cstdint>

namespace moepic {

// binary16 to float32, exact. A NaN keeps its sign and payload.
inline float f16_to_f32(uint16_t h) noexcept {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;  // exponent and mantissa, moved to float32's place
    // Rebias by 127 - 15; an exponent of all ones must stay all ones, so infinities and NaN move twice.
    const uint32_t rebias = magnitude >= 0x0f800000u ? 0x70000000u : 0x38000000u;
    const uint32_t normal = magnitude + rebias;
    // Subnormal: 2^-14 + m 2^-24 is a normal float32, and taking 2^-14 away again is exact.
    const float subnormal = std::bit_cast<float>(magnitude + 0x38800000u) - 0x1p-14f;
    const uint32_t bits = magnitude < 0x00800000u ? std::bit_cast<uint32_t>(subnormal) : normal;
    return std::bit_cast<float>(bits | sign);
}

// float32 to binary16. Beyond 65504 + 16 it gives infinity, as IEEE 754 says; a NaN stays a NaN (quiet).
inline uint16_t f32_to_f16(float f) noexcept {
    const uint32_t bits = std::bit_cast<uint32_t>(f);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Normal: rebias, then round away the low 13 bits; a carry walks into the exponent, up to infinity, by itself.
    const uint32_t rounded = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Below 2^-14: at 0.5 a float32 step is 2^-24, the step of binary16 subnormals, so the addition does the rounding.
    const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : 0x7c00u;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : rounded;
    return static_cast<uint16_t>(sign | (magnitude >= 0x477ff000u ? special : finite));
}

// bfloat16 is the upper half of a float32.
inline float bf16_to_f32(uint16_t h) noexcept {
    return std::bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

inline uint16_t f32_to_bf16(float f) noexcept {
    const uint32_t bits = std::bit_cast<uint32_t>(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return static_cast<uint16_t>((bits >> 16) | 0x40u);  // quiet, or rounding could make it infinite
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Half of the E8M0 scale 2^(e - 127): ggml stores E2M1 values doubled, so the other factor 2 is in them. 0 and 1 give float32
// subnormals; 255, which OCP MX calls NaN, gives 2^127, as gguf's dequantizer has it.
inline float e8m0_to_f32_half(uint8_t e) noexcept {
    const uint32_t bits = e < 2 ? 0x00200000u << e : (static_cast<uint32_t>(e) - 1u) << 23;
    return std::bit_cast<float>(bits);
}

}  // namespace moepic
