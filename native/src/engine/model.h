// A loaded model: configuration, and weights re-tiled in memory: all of them, or all but the routed experts, which a streamer then brings.
// Immutable after load, but for the streamer, which takes care of itself; shared by contexts and threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/region.h"
#include "engine/context_options.h"
#include "engine/streamer.h"
#include "expert/strip.h"
#include "gguf/file.h"
#include "model/binding.h"
#include "model/config.h"
#include "ops/ops.h"

namespace moepic {

struct Linear {
    ops::TiledMatrix w;
    const float* bias = nullptr;  // [rows] or null
};

// Experts of one layer. Where they are resident, strip e starts at strips + e * layout.strip_bytes().
struct ExpertSet {
    StripLayout layout;
    int64_t n_expert = 0;
    int64_t top_granules = 0;           // as the file was cut
    const std::byte* strips = nullptr;  // null: the model's streamer has them
    const float* down_bias = nullptr;   // [n_expert][n_embd] or null; belongs to no granule
    const std::byte* granule(int64_t expert, int64_t g) const noexcept {
        return strips + static_cast<size_t>(expert) * layout.strip_bytes() + static_cast<size_t>(g) * layout.granule_bytes;
    }
};

// StateMixerBinding in memory; rows 0 and null where the mixer has no such part.
struct StateMixerWeights {
    Linear in, out, gate, beta, alpha;
    const float* taps = nullptr;  // [n_taps][channels]
    const float *alpha_bias = nullptr, *rate = nullptr, *norm = nullptr;
};

struct LayerWeights {
    const float* attn_norm = nullptr;
    Linear wq, wk, wv, wo;
    Linear wq_a, wk_b, wv_b;  // of latent attention; heads of wk_b and wv_b one after the other
    const float *q_norm = nullptr, *k_norm = nullptr;
    const float* sinks = nullptr;  // [n_head]
    StateMixerWeights state_mixer;
    const float* ffn_norm = nullptr;
    const float *attn_norm_bias = nullptr, *ffn_norm_bias = nullptr;  // with them the norms are LayerNorms
    const float *post_attention_norm = nullptr, *post_ffn_norm = nullptr;
    // Of a layer with two branches: ffn_norm and post_dense_norm are the dense one's.
    const float *expert_norm = nullptr, *post_expert_norm = nullptr, *post_dense_norm = nullptr;
    const float* router_norm = nullptr;     // [n_embd], multiplies the normed input of the router
    const float* expert_scale = nullptr;    // [n_expert], multiplies routing weights
    const float* output_scale = nullptr;    // [1], multiplies what the layer gives
    Linear router;                          // rows = n_expert; rows 0: no routed experts
    const float* selection_bias = nullptr;  // [n_expert]
    std::optional<ExpertSet> routed;
    int moe_layer = -1;               // number among the layers with routed experts
    std::optional<ExpertSet> shared;  // a shared expert, or the dense feed-forward
    Linear shared_gate;               // one row; rows 0: not gated
};

// What the steps of a forward pass read, on the host or on a device: the model's own, or copies with the pointers of another memory.
struct WeightsView {
    std::span<const LayerWeights> layers;
    const float *output_norm = nullptr, *output_norm_bias = nullptr;
    Linear output;
};

enum class DeviceKind : uint8_t { cpu, cuda, emulated };

struct DeviceOptions {
    DeviceKind kind = DeviceKind::cpu;
    int index = 0;
    std::string folder;       // of the device libraries; empty: beside this one
    uint64_t vram_bytes = 0;  // for weights, one context, frames and the expert cache; 0: what is free, less a margin
    uint64_t pin_bytes = 0;   // of host memory to pin at most; 0: all experts, as far as the system grants it
    bool cpu_lane = true;     // the CPU computes granules beside the device
    Graphs graphs = Graphs::automatic;
};

struct LoadOptions {
    int n_threads = 0;       // 0: all cores
    int isa = -1;            // -1: best
    int64_t granule = 0;     // 0: default_granule()
    bool strict = false;     // a downgrade is an error
    uint64_t ram_bytes = 0;  // for weights, one context, staging and the expert cache together; 0: no limit
    ContextOptions context;  // the context that ram_bytes has to leave room for
    DeviceOptions device;
    bool stream = false;  // experts through the streamer even where all fit
    StreamOptions streaming;
    std::function<bool(uint64_t done, uint64_t total)> progress;  // false cancels
};

// What loading would take, and how: bytes.
struct MemoryNeeds {
    uint64_t weights = 0;                     // that have to be in memory anyway
    uint64_t experts = 0;                     // all routed experts
    uint64_t kv = 0, state = 0, scratch = 0;  // of the context
    uint64_t staging = 0;                     // 0 where nothing is streamed
    uint64_t cache = 0;                       // left for experts; 0 where nothing is streamed
    uint64_t least = 0;                       // the smallest RAM budget that works, nothing cached
    bool streams = false;
};

class DeviceModel;

class Model {
public:
    ~Model();
    // Throws io, format, unsupported, argument, budget, no_memory, cancelled.
    static std::unique_ptr<Model> load(const std::string& path, const LoadOptions& options);

    // The same decisions without a weight read. A budget that is too small is not refused: `least` says what would do.
    static MemoryNeeds measure(const std::string& path, const LoadOptions& options);

    const gguf::File& file() const noexcept { return file_; }
    const Config& config() const noexcept { return config_; }
    const ops::Kernels& kernels() const noexcept { return *kernels_; }
    const LayerWeights& layer(int64_t il) const noexcept { return layers_[static_cast<size_t>(il)]; }
    WeightsView weights() const noexcept { return {layers_, output_norm_, output_norm_bias_, output_}; }
    // Divisors of the rope frequencies for contexts of n_ctx positions, [n_rot / 2]; null: none.
    const float* rope_divisors(int64_t n_ctx) const noexcept;
    // One row of the embedding as floats, [n_embd].
    void embed(int32_t token, float* out) const noexcept;

    // Null on the CPU.
    DeviceModel* device() const noexcept { return device_.get(); }
    // Null where every expert is resident, and on a device.
    Streamer* streamer() const noexcept { return streamer_.get(); }

    // Whoever brings experts; null where every expert is resident.
    ExpertService* experts() const noexcept;

    // Threads of the CPU lane, which compute beside a context's own.
    int n_in_place() const noexcept { return n_in_place_; }

    // In memory: resident weights and the expert cache.
    uint64_t weight_bytes() const noexcept {
        return weights_.size() + host_weights_.size() + strips_.size() + (device_ ? 0 : cache_bytes_);
    }
    uint64_t cache_bytes() const noexcept { return cache_bytes_; }
    uint64_t staging_bytes() const noexcept { return staging_bytes_; }
    uint64_t expert_bytes() const noexcept;  // of all routed experts, wherever they are
    // Weights read for one decoded token: all dense ones, the used experts, one embedding row.
    uint64_t active_bytes() const noexcept;
    uint64_t n_params() const noexcept;

private:
    Model(gguf::File file, const LoadOptions& options);
    class Builder;

    gguf::File file_;
    Config config_;
    ModelBinding binding_;
    const ops::Kernels* kernels_ = nullptr;
    std::vector<LayerWeights> layers_;
    const float* output_norm_ = nullptr;
    const float *output_norm_bias_ = nullptr, *rope_freqs_ = nullptr, *rope_long_ = nullptr, *rope_short_ = nullptr;
    Linear output_;
    Type embedding_type_{};
    const std::byte* embedding_ = nullptr;  // GGUF rows
    Region weights_;                        // what the steps of a pass read; empty once it is on a device
    Region host_weights_;                   // what the host reads
    Region strips_;                         // routed experts
    uint64_t dense_bytes_ = 0;
    std::unique_ptr<DeviceModel> device_;
    uint64_t cache_bytes_ = 0, staging_bytes_ = 0;
    int n_in_place_ = 0;
    std::unique_ptr<Streamer> streamer_;
};

}  // namespace moepic
