#pragma once

#include "device/api.h"

namespace moepic::device {

int32_t heads(const HeadsJob& job, Stream stream);
int32_t latent_heads(const LatentHeadsJob& job, Stream stream);

}  // namespace moepic::device
