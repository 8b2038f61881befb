#include "model/mixers.h"

#include "base/error.h"
#include "ops/ops.h"

namespace moepic {
namespace {

constexpr int64_t kMostHeads = 4096, kMostHeadDim = 4096;

DeltaNetConfig read_delta_net(const Keys& keys, const Recipe& recipe) {
    DeltaNetConfig delta;
    delta.n_taps = keys.integer("ssm.conv_kernel", 2, ops::kMostTaps);
    delta.n_head_k = keys.integer("ssm.group_count", 1, kMostHeads);
    delta.n_head_v = keys.integer("ssm.time_step_rank", 1, kMostHeads);
    delta.head_dim_k = keys.integer("ssm.state_size", 1, kMostHeadDim);
    const int64_t value_rows = keys.integer("ssm.inner_size", 1, kMostHeads * kMostHeadDim);
    if (delta.n_head_v % delta.n_head_k || value_rows % delta.n_head_v || value_rows / delta.n_head_v > kMostHeadDim) {
        fail(Code::format, "model: keys '", recipe.arch, ".ssm.group_count', 'time_step_rank' and 'inner_size' are ", delta.n_head_k, ", ",
             delta.n_head_v, " and ", value_rows, ", expected key heads that divide value heads, and these the inner size");
    }
    delta.head_dim_v = value_rows / delta.n_head_v;
    return delta;
}

int64_t conv_state_floats(const Config& config, const LayerConfig& layer) noexcept {
    switch (layer.mixer) {
        case Mixer::attention:
            return 0;
        case Mixer::delta_net:
            return (config.delta_net.n_taps - 1) * config.delta_net.n_channels();
        case Mixer::short_conv:
            return (config.n_conv_taps - 1) * config.n_embd;
    }
    return 0;
}

}  // namespace

std::vector<Mixer> read_mixers(const Keys& keys, const std::vector<int64_t>& n_head_kv, Config& config) {
    const Recipe& recipe = *config.recipe;
    std::vector<Mixer> mixers(static_cast<size_t>(config.n_layer), Mixer::attention);
    switch (recipe.mixer) {
        case Mixer::attention:
            break;
        case Mixer::delta_net: {
            config.delta_net = read_delta_net(keys, recipe);
            const char* stated = "attention.recurrent_layers";
            const int64_t period = keys.integer_or("full_attention_interval", 4, 1, 4096);
            const std::vector<int64_t> recurrent = keys.has(stated) ? keys.integers(stated, config.n_layer, 0, 1) : std::vector<int64_t>();
            for (size_t il = 0; il < mixers.size(); ++il) {
                const bool attends = recurrent.empty() ? (static_cast<int64_t>(il) + 1) % period == 0 : recurrent[il] == 0;
                if (!attends) mixers[il] = Mixer::delta_net;
            }
            break;
        }
        case Mixer::short_conv:
            config.n_conv_taps = keys.integer("shortconv.l_cache", 2, ops::kMostTaps);
            if (config.n_embd % ops::kTileRows) {
                fail(Code::unsupported, "model: a width of ", config.n_embd, " with short convolutions is not a multiple of ",
                     ops::kTileRows);
            }
            for (size_t il = 0; il < mixers.size(); ++il) {
                if (n_head_kv[il] == 0) mixers[il] = Mixer::short_conv;
            }
            break;
    }
    return mixers;
}

int64_t matrices_offset(const Config& config, const LayerConfig& layer) noexcept {
    return (conv_state_floats(config, layer) + 15) / 16 * 16;
}

int64_t state_floats(const Config& config, const LayerConfig& layer) noexcept {
    const DeltaNetConfig& delta = config.delta_net;
    const int64_t matrices =
        layer.mixer == Mixer::delta_net ? delta.n_head_v * ops::delta_state_floats(delta.head_dim_k, delta.head_dim_v) : 0;
    return matrices_offset(config, layer) + matrices;
}

}  // namespace moepic
