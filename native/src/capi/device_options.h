// moepic_device_options as the engine takes them.
#pragma once

#include "engine/model.h"
#include "moepic.h"

namespace moepic {

DeviceOptions read_device_options(const moepic_device_options* given);

}  // namespace moepic
