#pragma once

#include "device/api.h"

namespace moepic::device {

int32_t scale(float* y, float a, int64_t n, Stream stream);
int32_t scale_add(float* y, float a, const float* x, int64_t n, Stream stream);
int32_t add(float* y, const float* x, int64_t n, Stream stream);
int32_t multiply(float* y, const float* x, int64_t n, Stream stream);
int32_t sigmoid(float* x, int64_t n, Stream stream);
int32_t glu(const GluJob& job, Stream stream);

}  // namespace moepic::device
