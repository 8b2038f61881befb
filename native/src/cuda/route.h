#pragma once

#include "device/api.h"

namespace moepic::device {

int32_t route(const RouteJob& job, Stream stream);

}  // namespace moepic::device
