#pragma once

#include "device/api.h"

namespace moepic::device {

int32_t conv(const ConvJob& job, Stream stream);
int32_t delta_gates(const DeltaGatesJob& job, Stream stream);
int32_t delta_rule(const DeltaRuleJob& job, Stream stream);

}  // namespace moepic::device
