// Which layers keep a state of fixed size instead of keys and values, and the sizes of that state.
#pragma once

#include <vector>

#include "model/config.h"
#include "model/keys.h"

namespace moepic {

// The mixer of every layer; fills config.delta_net or config.n_conv_taps where the recipe has such layers. n_head_kv: as the file has it,
// 0 where a layer has no attention. Throws format or unsupported.
std::vector<Mixer> read_mixers(const Keys& keys, const std::vector<int64_t>& n_head_kv, Config& config);

// Floats of one layer's state: inputs of the convolution that later tokens still see, then, from matrices_offset on, the matrices of the
// heads.
int64_t matrices_offset(const Config& config, const LayerConfig& layer) noexcept;
int64_t state_floats(const Config& config, const LayerConfig& layer) noexcept;

}  // namespace moepic
