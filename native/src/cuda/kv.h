#pragma once

#include "device/api.h"

namespace moepic::device {

int32_t kv_store(const KvStoreJob& job, Stream stream);

}  // namespace moepic::device
