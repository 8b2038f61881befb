#pragma once

#include "device/api.h"

namespace moepic::device {

int32_t quantize(uint32_t mask, const float* x, int64_t stride, int64_t cols, int64_t n, const Acts& acts, Stream stream);

}  // namespace moepic::device
