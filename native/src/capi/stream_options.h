// The caller's streaming options as the engine's, checked.
#pragma once

#include "engine/model.h"
#include "moepic.h"

namespace moepic {

// Throws Error(argument) for a value out of range.
void read_stream_options(LoadOptions& options, const moepic_stream_options* given);

}  // namespace moepic
