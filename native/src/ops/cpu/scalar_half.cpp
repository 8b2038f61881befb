// binary16 for the plain instruction set of simd.h: quant/half.h behind functions with ordinary linkage, compiled for the plainest machine,
// so that no copy made for a wider one can be linked in its place.
#include "quant/half.h"

namespace moepic::ops::scalar {

float half_to_float(uint16_t h);
uint16_t float_to_half(float f);

float half_to_float(uint16_t h) {
    return f16_to_f32(h);
}

uint16_t float_to_half(float f) {
    return f32_to_f16(f);
}

}  // namespace moepic::ops::scalar
