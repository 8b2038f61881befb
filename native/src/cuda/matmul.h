#pragma once

#include "device/api.h"

namespace moepic::device {

int32_t matmul(const MatmulList& list, Stream stream);

}  // namespace moepic::device
