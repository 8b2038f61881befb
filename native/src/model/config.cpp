#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "model/keys.h"
#include "model/mixers.h"

namespace moepic {
namespace {

// Bounds no real model comes near; they keep products inside 64 bits.
constexpr int64_t kMaxWidth = int64_t{1} << 22;
constexpr int64_t kMaxCount = int64_t{1} << 20;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHead = 3840;  // a head's width; attention's scratch holds 8 rows of such keys and values
constexpr int64_t kMaxGroups = 64;  // of experts; engine/router.cpp holds a bit for each

std::string layer_tensor(int64_t il, const char* rest) {
    return cat("blk.", il, ".", rest);
}

bool has_experts(const gguf::File& file, int64_t il) {
    return file.find_tensor(layer_tensor(il, "ffn_gate_inp.weight")) != nullptr;
}

RopeConfig read_rope(const gguf::File& file, const Keys& keys, const Recipe& recipe, int64_t head_dim, int64_t n_ctx_train) {
    RopeConfig rope;
    rope.pairing = recipe.rope;
    rope.n_rot = keys.integer_or("rope.dimension_count", head_dim, 2, head_dim);
    if (rope.n_rot % 2)
        fail(Code::format, "model: key '", recipe.arch, ".rope.dimension_count' is ", rope.n_rot, ", expected an even number");
    rope.base = keys.number_or("rope.freq_base", 10000.0);
    if (!(rope.base > 0)) fail(Code::format, "model: key '", recipe.arch, ".rope.freq_base' is ", rope.base, ", expected more than 0");
    const std::string kind = keys.text_or("rope.scaling.type", keys.has("rope.scale_linear") ? "linear" : "none");
    // Converters of Phi's say it by the tensors alone.
    if (kind == "longrope" || file.find_tensor("rope_factors_long.weight")) {
        rope.scaling = RopeScaling::long_short;
        rope.original_context = keys.integer("rope.scaling.original_context_length", 1, kMaxWidth * 1024);
        rope.attn_factor = keys.number_or("rope.scaling.attn_factor", 1.0);
        return rope;
    }
    if (kind == "linear") {
        rope.scaling = RopeScaling::linear;
    } else if (kind == "yarn") {
        rope.scaling = RopeScaling::yarn;
    } else if (kind != "none" && !kind.empty()) {
        fail(Code::unsupported, "model: rope scaling '", kind, "' is not supported (supported: none, linear, yarn, longrope)");
    }
    if (rope.scaling != RopeScaling::none) {
        rope.factor = keys.number_or("rope.scaling.factor", keys.number_or("rope.scale_linear", 1.0));
        if (!(rope.factor > 0))
            fail(Code::format, "model: key '", recipe.arch, ".rope.scaling.factor' is ", rope.factor, ", expected more than 0");
        rope.original_context = keys.integer_or("rope.scaling.original_context_length", n_ctx_train, 1, kMaxWidth * 1024);
        rope.beta_fast = keys.number_or("rope.scaling.yarn_beta_fast", 32.0);
        rope.beta_slow = keys.number_or("rope.scaling.yarn_beta_slow", 1.0);
        rope.attn_factor = keys.number_or("rope.scaling.attn_factor", 1.0);
        rope.truncate = recipe.yarn_truncate;
    }
    return rope;
}

// Of layers with a window: their own base and width, and no scaling.
RopeConfig read_window_rope(const Keys& keys, const Recipe& recipe, int64_t head_dim) {
    RopeConfig rope;
    rope.pairing = recipe.rope;
    rope.n_rot = keys.integer_or("rope.dimension_count_swa", head_dim, 2, head_dim) / 2 * 2;
    rope.base = keys.number_or("rope.freq_base_swa", recipe.window_rope_base);
    if (!(rope.base > 0)) fail(Code::format, "model: key '", recipe.arch, ".rope.freq_base_swa' is ", rope.base, ", expected more than 0");
    return rope;
}

// Temperatures of queries, soft caps, tokens that must not be chosen: what few families have.
void read_extras(const gguf::File& file, const Keys& keys, Config& config) {
    const Recipe& recipe = *config.recipe;
    if (recipe.embedding_root) config.embedding_scale = std::sqrt(static_cast<float>(config.n_embd));
    if (recipe.rope_in_windows) {
        config.temperature_scale = keys.number_or("attention.temperature_scale", 0.1);
        config.temperature_length = keys.integer_or("attention.temperature_length", 8192, 1, kMaxWidth * 1024);
    }
    const double cap = keys.number_or("final_logit_softcapping", 0.0);
    if (cap < 0) fail(Code::format, "model: key '", recipe.arch, ".final_logit_softcapping' is ", cap, ", expected 0 or more");
    config.soft_cap = static_cast<float>(cap);
    for (const char* key : {"attn_logit_softcapping", "router_logit_softcapping"}) {
        if (keys.number_or(key, 0.0) != 0.0) fail(Code::unsupported, "model: key '", recipe.arch, ".", key, "' is set; not supported");
    }
    // Gemma's E models; their tensors would be named too, but not why.
    for (const char* key : {"embedding_length_per_layer_input", "attention.shared_kv_layers"}) {
        if (keys.integer_or(key, 0, 0, kMaxWidth) != 0) {
            fail(Code::unsupported, "model: key '", recipe.arch, ".", key,
                 "' is set; per-layer embeddings and shared keys and values are not "
                 "supported");
        }
    }
    if (const gguf::Value* tokens = file.find("tokenizer.ggml.suppress_tokens")) {
        for (uint64_t i = 0; i < tokens->count(); ++i) {
            const std::optional<int64_t> id = tokens->as_i64(i);
            if (id && *id >= 0 && *id < config.n_vocab) config.suppressed.push_back(static_cast<int32_t>(*id));
        }
    }
}

LatentConfig read_latent(const Keys& keys, const Recipe& recipe, const RopeConfig& rope, int64_t head_dim_k, int64_t head_dim_v) {
    LatentConfig latent;
    latent.kv_rank = keys.integer("attention.kv_lora_rank", 1, kMaxHead - rope.n_rot);
    latent.q_rank = keys.integer_or("attention.q_lora_rank", 0, 0, kMaxWidth);
    latent.joined = !keys.has("attention.key_length_mla");
    if (latent.joined) {
        latent.plain = head_dim_k - rope.n_rot;
        latent.head_dim_v = head_dim_v;
        if (latent.plain < 1) {
            fail(Code::format, "model: key '", recipe.arch, ".attention.key_length' is ", head_dim_k, ", expected more than the ",
                 rope.n_rot, " rotated dimensions");
        }
    } else {
        latent.plain = keys.integer("attention.key_length_mla", rope.n_rot + 1, kMaxHead) - rope.n_rot;
        latent.head_dim_v = keys.integer("attention.value_length_mla", 1, kMaxHead);
        if (head_dim_k != latent.kv_rank + rope.n_rot || head_dim_v != latent.kv_rank) {
            fail(Code::format, "model: keys '", recipe.arch, ".attention.key_length' and 'value_length' are ", head_dim_k, " and ",
                 head_dim_v, ", expected ", latent.kv_rank + rope.n_rot, " and ", latent.kv_rank, " (latent and rotated part; latent)");
        }
    }
    if (latent.kv_rank % ops::kTileRows || latent.head_dim_v % ops::kTileRows) {
        fail(Code::unsupported, "model: latents of ", latent.kv_rank, " and values of ", latent.head_dim_v, " are not multiples of ",
             ops::kTileRows);
    }
    return latent;
}

// 1 for each layer whose attention slides: by an array of the file, or all but every n-th.
std::vector<int64_t> window_pattern(const Keys& keys, const Recipe& recipe, int64_t n_layer) {
    std::vector<int64_t> slides(static_cast<size_t>(n_layer), 0);
    if (!recipe.window_period) return slides;
    int64_t period = recipe.window_period;
    if (keys.has("attention.sliding_window_pattern")) {
        std::vector<int64_t> stated = keys.integers("attention.sliding_window_pattern", n_layer, 0, kMaxLayers);
        if (keys.is_array("attention.sliding_window_pattern")) return stated;
        period = stated[0];
    }
    for (int64_t il = 0; il < n_layer; ++il) slides[static_cast<size_t>(il)] = period == 0 || il % period < period - 1;
    return slides;
}

}  // namespace

Config read_config(const gguf::File& file) {
    const gguf::Value* arch_value = file.find("general.architecture");
    const std::optional<std::string_view> arch = arch_value ? arch_value->as_string() : std::nullopt;
    if (!arch) fail(Code::format, "model: key 'general.architecture' is missing or not a string (a GGUF that holds no model?)");
    Config config;
    config.recipe = find_recipe(*arch);
    if (!config.recipe) {
        const Recipe* nearest = nearest_recipe(*arch);
        fail(Code::unsupported, "model: architecture '", *arch, "' is not supported",
             nearest ? cat("; the nearest supported one is '", nearest->arch, "'") : "", " (supported: ", architecture_list(), ")");
    }
    const Recipe& recipe = *config.recipe;
    const Keys keys(file, *arch);

    const int64_t n_block = keys.integer("block_count", 1, kMaxLayers);
    config.n_nextn = keys.integer_or("nextn_predict_layers", 0, 0, n_block - 1);
    config.n_layer = n_block - config.n_nextn;
    config.n_embd = keys.integer("embedding_length", 1, kMaxWidth);
    config.n_ctx_train = keys.integer("context_length", 1, kMaxWidth * 1024);
    config.norm_eps = static_cast<float>(keys.number("attention.layer_norm_rms_epsilon"));
    const gguf::Tensor* embedding = file.find_tensor("token_embd.weight");
    if (!embedding) fail(Code::format, "model: tensor 'token_embd.weight' is missing (an incomplete set of shards?)");
    config.n_vocab = static_cast<int64_t>(embedding->ne[1]);
    if (config.n_vocab < 1 || config.n_vocab > kMaxWidth * 16) {
        fail(Code::format, "model: tensor 'token_embd.weight' has ", config.n_vocab, " rows, expected 1 to ", kMaxWidth * 16);
    }

    const int64_t least_heads = recipe.mixer == Mixer::short_conv ? 0 : 1;  // layers without attention have none
    const std::vector<int64_t> n_head = keys.integers("attention.head_count", config.n_layer, 1, kMaxCount);
    std::vector<int64_t> n_head_kv =
        keys.has("attention.head_count_kv") ? keys.integers("attention.head_count_kv", config.n_layer, least_heads, kMaxCount) : n_head;
    const std::vector<int64_t> n_ff = keys.has("feed_forward_length") ? keys.integers("feed_forward_length", config.n_layer, 0, kMaxWidth)
                                                                      : std::vector<int64_t>(static_cast<size_t>(config.n_layer), 0);
    int64_t head_dim_k = keys.integer_or("attention.key_length", config.n_embd / n_head[0], 2, kMaxHead);
    int64_t head_dim_v = keys.integer_or("attention.value_length", config.n_embd / n_head[0], 2, kMaxHead);
    if (!keys.has("attention.key_length") && config.n_embd % n_head[0]) {
        fail(Code::format, "model: embedding_length ", config.n_embd, " is not a multiple of head_count ", n_head[0],
             " and there is no key_length");
    }
    config.rope = read_rope(file, keys, recipe, head_dim_k, config.n_ctx_train);
    const int64_t window_dim_k = keys.integer_or("attention.key_length_swa", head_dim_k, 2, kMaxHead);
    const int64_t window_dim_v = keys.integer_or("attention.value_length_swa", head_dim_v, 2, kMaxHead);
    if (recipe.window_rope_base > 0) config.window_rope = read_window_rope(keys, recipe, window_dim_k);

    if (recipe.latent) {
        config.latent = read_latent(keys, recipe, config.rope, head_dim_k, head_dim_v);
        if (config.latent.joined) {  // it runs absorbed like the others
            head_dim_k = config.latent.kv_rank + config.rope.n_rot;
            head_dim_v = config.latent.kv_rank;
            std::fill(n_head_kv.begin(), n_head_kv.end(), 1);
        }
        // The model stretches logits where YaRN stretches cos and sin; the key holds 0.1 mscale_all_dim.
        const double stretch = config.rope.scaling == RopeScaling::yarn ? std::max(0.0, std::log(config.rope.factor)) : 0.0;
        const double magnitude = 1.0 + keys.number_or("rope.scaling.yarn_log_multiplier", 0.0) * stretch;
        config.rope.attn_factor /= 1.0 + 0.1 * stretch;
        config.attention_scale =
            static_cast<float>(magnitude * magnitude / std::sqrt(static_cast<double>(config.latent.plain + config.rope.n_rot)));
    }
    const int64_t n_expert = keys.integer_or("expert_count", 0, 0, kMaxCount);
    const int64_t n_expert_used = n_expert ? keys.integer("expert_used_count", 1, n_expert) : 0;
    const int64_t n_ff_exp = keys.integer_or("expert_feed_forward_length", 0, 0, kMaxWidth);
    const int64_t n_ff_shared = keys.integer_or("expert_shared_feed_forward_length", 0, 0, kMaxWidth);
    config.renormalise = keys.boolean("expert_weights_norm").value_or(recipe.renormalise);
    const double scale = keys.number_or("expert_weights_scale", 0.0);
    config.router_scale = scale == 0.0 ? 1.0f : static_cast<float>(scale);
    const int64_t gating = keys.integer_or("expert_gating_func", 0, 0, 255);  // 0: what the architecture always has
    config.scoring = gating ? static_cast<Scoring>(gating) : recipe.scoring;
    if (n_expert && gating > static_cast<int64_t>(Scoring::softmax_selected)) {
        fail(Code::unsupported, "model: key '", recipe.arch, ".expert_gating_func' is ", gating,
             ", supported: 1 (softmax), 2 (sigmoid), 3 (softmax over the selected)");
    }
    if (config.scoring == Scoring::sparse_mixer && n_expert && (n_expert_used != 2 || n_expert > kMostSparseExperts)) {
        fail(Code::unsupported, "model: keys '", recipe.arch, ".expert_used_count' and 'expert_count' are ", n_expert_used, " and ",
             n_expert, "; this router takes 2 of at most ", kMostSparseExperts);
    }
    config.bare_qk_norm = recipe.qk_norm == QkNorm::bare && n_expert != recipe.no_qk_norm_experts;
    config.groups_by_best = recipe.latent && config.scoring == Scoring::softmax;  // V2's group_limited_greedy; V3 sums two
    config.n_group =
        std::max<int64_t>(1, keys.integer_or("expert_group_count", 1, 0, std::min<int64_t>(kMaxGroups, std::max<int64_t>(1, n_expert))));
    config.n_group_used = std::max<int64_t>(1, keys.integer_or("expert_group_used_count", config.n_group, 0, config.n_group));
    if (n_expert % config.n_group || config.n_group_used * (n_expert / config.n_group) < n_expert_used) {
        fail(Code::format, "model: key '", recipe.arch, ".expert_group_count' is ", config.n_group, ": ", config.n_group_used,
             " of these groups of ", n_expert, " experts cannot give ", n_expert_used, " per token");
    }
    if (recipe.multipliers) {
        config.embedding_scale = static_cast<float>(keys.number_or("embedding_scale", 1.0));
        config.residual_scale = static_cast<float>(keys.number_or("residual_scale", 1.0));
        config.attention_scale = static_cast<float>(keys.number_or("attention.scale", 0.0));
        const double divisor = keys.number_or("logit_scale", 1.0);
        if (divisor == 0.0) fail(Code::format, "model: key '", recipe.arch, ".logit_scale' is 0; logits are divided by it");
        config.logit_scale = static_cast<float>(1.0 / divisor);
    }
    read_extras(file, keys, config);
    if (recipe.unit_attention) config.attention_scale = 1.0f;
    // Gemma 3 27B; its files have no key for it.
    if (config.n_layer == recipe.wide_scale_layers)
        config.attention_scale = 1.0f / std::sqrt(static_cast<float>(config.n_embd / n_head[0]));
    if (!recipe.multipliers && keys.has("attention.scale")) config.attention_scale = static_cast<float>(keys.number("attention.scale"));
    if (keys.number_or("attention.clamp_kqv", 0.0) != 0.0) {
        fail(Code::unsupported, "model: key '", recipe.arch, ".attention.clamp_kqv' is set; clamped projections are not supported");
    }
    const bool must_say = recipe.window_period && !recipe.default_window;
    const int64_t window = must_say ? keys.integer("attention.sliding_window", 1, kMaxWidth * 1024)
                                    : keys.integer_or("attention.sliding_window", recipe.default_window, 0, kMaxWidth * 1024);
    const std::vector<int64_t> slides = window_pattern(keys, recipe, config.n_layer);
    // Some converters write a window that the model never uses; a real one changes results, so it must not pass in silence.
    if (!recipe.window_period && window > 0 && window < config.n_ctx_train) {
        fail(Code::unsupported, "model: key '", recipe.arch, ".attention.sliding_window' is ", window,
             "; sliding-window attention is not supported yet");
    }

    const std::vector<Mixer> mixers = read_mixers(keys, n_head_kv, config);
    config.layers.resize(static_cast<size_t>(config.n_layer));
    for (int64_t il = 0; il < config.n_layer; ++il) {
        const size_t i = static_cast<size_t>(il);
        LayerConfig& layer = config.layers[i];
        layer.mixer = mixers[i];
        if (layer.mixer == Mixer::attention) {
            layer.n_head = n_head[i];
            layer.n_head_kv = n_head_kv[i];
        }
        if (layer.n_head_kv && layer.n_head % layer.n_head_kv) {
            fail(Code::format, "model: layer ", il, " has ", layer.n_head, " heads, not a multiple of its ", layer.n_head_kv,
                 " key/value heads");
        }
        if (recipe.latent && layer.n_head_kv != 1) {
            fail(Code::format, "model: key '", recipe.arch, ".attention.head_count_kv' is ", layer.n_head_kv,
                 ", expected 1: all heads share one latent");
        }
        layer.window = slides[i] ? window : 0;
        layer.head_dim_k = layer.window ? window_dim_k : head_dim_k;
        layer.head_dim_v = layer.window ? window_dim_v : head_dim_v;
        if (layer.head_dim_k > kMaxHead || layer.head_dim_v > kMaxHead) {
            fail(Code::unsupported, "model: layer ", il, " has heads of ", layer.head_dim_k, " and ", layer.head_dim_v, ", more than ",
                 kMaxHead);
        }
        layer.rotates = !recipe.rope_in_windows || window == 0 || layer.window > 0;
        layer.window_rope = recipe.window_rope_base > 0 && layer.window > 0;
        if (recipe.two_branches) layer.n_ff_shared = n_ff[i];
        if (n_expert && has_experts(file, il)) {
            layer.n_expert = n_expert;
            layer.n_expert_used = n_expert_used;
            layer.n_ff = n_ff_exp ? n_ff_exp : n_ff[i];
            if (recipe.shared != SharedExpert::none) {
                // Old qwen2moe files have no key for it: the tensor tells.
                const gguf::Tensor* shared = file.find_tensor(layer_tensor(il, "ffn_gate_shexp.weight"));
                layer.n_ff_shared = n_ff_shared ? n_ff_shared : shared ? static_cast<int64_t>(shared->ne[1]) : 0;
            }
        } else {
            layer.n_ff = n_ff[i];
        }
        if (layer.n_ff < 1) {
            fail(Code::format, "model: layer ", il, " has no feed-forward width ('", recipe.arch,
                 layer.n_expert ? ".expert_feed_forward_length'" : ".feed_forward_length'", " is missing or 0)");
        }
    }
    return config;
}

KvNeed kv_need_f16(const Config& config) noexcept {
    KvNeed need;
    for (const LayerConfig& layer : config.layers) {
        const uint64_t bytes = static_cast<uint64_t>(layer.n_head_kv * (layer.head_dim_k + layer.head_dim_v)) * 2;
        (layer.window ? need.in_windows : need.per_token) += bytes * static_cast<uint64_t>(layer.window ? layer.window : 1);
        need.window = std::max(need.window, layer.window);
    }
    return need;
}

}  // namespace moepic
