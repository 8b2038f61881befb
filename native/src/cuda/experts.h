#pragma once

#include "device/api.h"

namespace moepic::device {

int32_t expert_intermediate(const ExpertJob& job, Stream stream);
int32_t expert_down_few(const ExpertJob& job, Stream stream);
int32_t expert_down_many(const ExpertJob& job, Stream stream);
int32_t reduce(const ReduceJob& job, Stream stream);

}  // namespace moepic::device
