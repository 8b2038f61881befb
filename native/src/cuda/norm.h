#pragma once

#include "device/api.h"

namespace moepic::device {

int32_t norm(const NormJob& job, Stream stream);

}  // namespace moepic::device
