// Stands in for CUDA's <cuda_fp16.h>: the type and its two conversions.
#pragma once

#include <cstdint>

#include "quant/half.h"

struct __half {
    uint16_t bits;
};
using half = __half;

inline float __half2float(__half h) {
    return moepic::f16_to_f32(h.bits);
}
// A GPU gives one NaN for all.
inline __half __float2half_rn(float f) {
    return {f == f ? moepic::f32_to_f16(f) : uint16_t{0x7fff}};
}
inline unsigned short __half_as_ushort(__half h) {
    return h.bits;
}
inline __half __ushort_as_half(unsigned short bits) {
    return {bits};
}
