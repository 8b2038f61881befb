// Sizes and switches of one model, read from metadata and checked against each other. Computes nothing, owns no weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gguf/file.h"
#include "model/recipe.h"

namespace moepic {

enum class RopeScaling : uint8_t {
    none,
    linear,
    yarn,
    long_short,  // divisors per pair, one set for contexts up to the original length, one for longer ones (LongRoPE)
};

struct RopeConfig {
    ops::RopePairing pairing = ops::RopePairing::norm;
    int64_t n_rot = 0;  // rotated dims of a head, even
    double base = 10000.0;
    RopeScaling scaling = RopeScaling::none;
    double factor = 1.0;           // context extension
    int64_t original_context = 0;  // yarn, long_short
    double beta_fast = 32.0, beta_slow = 1.0;
    double attn_factor = 1.0;  // multiplies yarn's magnitude factor; of long_short, is the factor
    bool truncate = true;      // yarn's ramp begins and ends at whole dimensions
};

// Multi-head latent attention, absorbed (DeepSeek-V2, section 2.1): one key [latent | rotated part] and one value, the latent, for all
// heads; a query's plain part is carried into the latent's space, and what it attended to out of it, by matrices per head.
struct LatentConfig {
    int64_t kv_rank = 0;  // of the latent; 0: ordinary attention
    int64_t q_rank = 0;   // queries go through this width first; 0: they don't
    int64_t plain = 0;    // dims of a query head that are not rotated
    int64_t head_dim_v = 0;
    bool joined = false;  // the file is from before 2025: attn_kv_b holds, per head, rows of attn_k_b (not turned) and of attn_v_b
};

// A gated delta net: [q | k | v] channels pass a short convolution; each value head keeps a matrix [head_dim_k, head_dim_v].
struct DeltaNetConfig {
    int64_t n_taps = 0;    // of the convolution
    int64_t n_head_k = 0;  // heads of queries and of keys
    int64_t n_head_v = 0;  // a multiple of n_head_k
    int64_t head_dim_k = 0, head_dim_v = 0;
    int64_t key_rows() const noexcept { return n_head_k * head_dim_k; }
    int64_t value_rows() const noexcept { return n_head_v * head_dim_v; }
    int64_t n_channels() const noexcept { return 2 * key_rows() + value_rows(); }
};

// The router of SparseMixer holds this many logits on its stack.
inline constexpr int64_t kMostSparseExperts = 256;

struct LayerConfig {
    Mixer mixer = Mixer::attention;  // others have no heads, keys or values
    int64_t n_head = 0, n_head_kv = 0;
    int64_t head_dim_k = 0, head_dim_v = 0;
    int64_t n_expert = 0, n_expert_used = 0;  // 0: dense feed-forward
    int64_t n_ff = 0;                         // width of one expert, or of the dense feed-forward
    int64_t n_ff_shared = 0;                  // width of the shared expert; 0: none
    int64_t window = 0;                       // positions a token sees, its own included; 0: all
    bool rotates = true;                      // rope
    bool window_rope = false;                 // Config::window_rope instead of Config::rope
    int device = -1;                          // -1: CPU
};

struct Config {
    const Recipe* recipe = nullptr;
    int64_t n_layer = 0, n_embd = 0, n_vocab = 0, n_ctx_train = 0;
    int64_t n_nextn = 0;  // blocks after the layers that predict further tokens (MTP); not run
    float norm_eps = 1e-5f;
    RopeConfig rope;
    RopeConfig window_rope;  // of layers with a window, where it differs
    LatentConfig latent;
    DeltaNetConfig delta_net;
    int64_t n_conv_taps = 0;  // of short-convolution layers
    Scoring scoring = Scoring::softmax;
    int64_t n_group = 1, n_group_used = 1;                                    // experts are chosen from the best groups only
    bool renormalise = false;                                                 // routing weights
    float embedding_scale = 1.0f, residual_scale = 1.0f, logit_scale = 1.0f;  // multiply embeddings, each block's output, logits
    float attention_scale = 0.0f;                                             // multiplies q . k; 0: 1 / sqrt(head_dim_k)
    double temperature_scale = 0.0;  // queries of layers that do not rotate times 1 + scale ln(1 + floor((position + 1) / length))
    int64_t temperature_length = 0;
    bool bare_qk_norm = false;        // QkNorm::bare, and this model has it
    float soft_cap = 0.0f;            // logits become cap tanh(logits / cap); 0: they stay
    std::vector<int32_t> suppressed;  // tokens that are never to be chosen: their logits are -inf
    bool groups_by_best = false;      // a group of experts is worth its best one, not its best two
    float router_scale = 1.0f;        // multiplies routing weights
    std::vector<LayerConfig> layers;

    // The first layer with keys and values, which stands for all in reports.
    const LayerConfig& attention_layer() const noexcept {
        for (const LayerConfig& layer : layers) {
            if (layer.mixer == Mixer::attention) return layer;
        }
        return layers.front();
    }
};

// Bytes of keys and values in F16: what one more token adds, and what layers with a window hold at most, whatever the context.
struct KvNeed {
    uint64_t per_token = 0, in_windows = 0;
    int64_t window = 0;  // positions of the widest window; 0: there are none
};
KvNeed kv_need_f16(const Config& config) noexcept;

// Throws format (a key is missing, of a wrong type or out of range) or unsupported (an architecture or option this build can't run).
Config read_config(const gguf::File& file);

}  // namespace moepic
