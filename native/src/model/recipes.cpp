#include <algorithm>
#include <string>
#include <vector>

#include "model/recipe.h"

namespace moepic {
namespace {

using ops::GluKind;
using ops::RopePairing;

constexpr Recipe kRecipes[] = {
    {.arch = "llama",
     .title = "Llama, Mistral, SmolLM2; Mixtral when it has experts",
     .rope = RopePairing::norm,
     .qk_norm = QkNorm::none,
     .qkv_bias = Presence::optional,
     .renormalise = true},
    {.arch = "qwen2",
     .title = "Qwen2 and Qwen2.5, dense",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::none,
     .qkv_bias = Presence::required,
     .renormalise = false},
    {.arch = "qwen2moe",
     .title = "Qwen1.5-MoE and Qwen2-MoE",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::none,
     .qkv_bias = Presence::required,
     .renormalise = false,
     .shared = SharedExpert::gated},
    {.arch = "qwen3",
     .title = "Qwen3, dense",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::never,
     .renormalise = false},
    {.arch = "qwen3moe",
     .title = "Qwen3-MoE (30B-A3B, 235B-A22B, Coder)",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::never,
     .renormalise = true},
    {.arch = "olmoe",
     .title = "OLMoE",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::whole,
     .qkv_bias = Presence::never,
     .renormalise = false},
    {.arch = "gpt-oss",
     .title = "gpt-oss (20b, 120b)",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::none,
     .qkv_bias = Presence::required,
     .renormalise = false,
     .glu = GluKind::silu_clamped,
     .ffn_norm = "post_attention_norm",
     .scoring = Scoring::softmax_selected,
     .expert_bias = true,
     .sinks = true,
     .window_period = 2,
     .yarn_truncate = false},
    {.arch = "glm4moe",
     .title = "GLM-4.5, 4.6 and Air",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::optional,
     .renormalise = true,
     .shared = SharedExpert::plain,
     .ffn_norm = "post_attention_norm",
     .scoring = Scoring::sigmoid,
     .qk_norm_optional = true,
     .selection_bias = Presence::required},
    {.arch = "minimax-m2",
     .title = "MiniMax-M2",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::whole,
     .qkv_bias = Presence::never,
     .renormalise = true,
     .scoring = Scoring::sigmoid,
     .selection_bias = Presence::required},
    {.arch = "ernie4_5-moe",
     .title = "ERNIE 4.5 MoE",
     .rope = RopePairing::norm,
     .qk_norm = QkNorm::none,
     .qkv_bias = Presence::optional,
     .renormalise = true,
     .shared = SharedExpert::plain,
     .selection_bias = Presence::optional},
    {.arch = "granitemoe",
     .title = "Granite 3 MoE",
     .rope = RopePairing::norm,
     .qk_norm = QkNorm::none,
     .qkv_bias = Presence::optional,
     .renormalise = true,
     .shared = SharedExpert::plain,
     .multipliers = true},
    {.arch = "hunyuan-moe",
     .title = "Hunyuan-A13B",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::never,
     .renormalise = true,
     .shared = SharedExpert::plain,
     .norm_after_rope = true},
    {.arch = "phimoe",
     .title = "Phi-3.5-MoE",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::none,
     .qkv_bias = Presence::optional,
     .renormalise = false,
     .scoring = Scoring::sparse_mixer,
     .norm = NormKind::layer,
     .output_bias = Presence::optional},
    {.arch = "gemma3",
     .title = "Gemma 3, dense",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::never,
     .renormalise = false,
     .glu = GluKind::gelu,
     .window_period = 6,
     .embedding_root = true,
     .post_norms = true,
     .window_rope_base = 10000.0,
     .wide_scale_layers = 62},
    {.arch = "gemma4",
     .title = "Gemma 4 (26B-A4B; dense ones without per-layer embeddings)",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::never,
     .renormalise = true,
     .glu = GluKind::gelu,
     .window_period = 6,
     .embedding_root = true,
     .post_norms = true,
     .window_rope_base = 10000.0,
     .rope_divisors = true,
     .unit_attention = true,
     .value_norm = true,
     .value_from_key = true,
     .two_branches = true},
    {.arch = "llama4",
     .title = "Llama 4 (Scout, Maverick)",
     .rope = RopePairing::norm,
     .qk_norm = QkNorm::bare,
     .qkv_bias = Presence::optional,
     .renormalise = false,
     .shared = SharedExpert::plain,
     .scoring = Scoring::sigmoid,
     .window_period = 4,
     .norm_after_rope = true,
     .default_window = 8192,
     .window_chunks = true,
     .rope_in_windows = true,
     .weight_on_input = true,
     .no_qk_norm_experts = 128},
    {.arch = "deepseek2",
     .title = "DeepSeek V2, V3 and R1, GLM-4.7-Flash",
     .rope = RopePairing::norm,
     .qk_norm = QkNorm::none,
     .qkv_bias = Presence::never,
     .renormalise = false,
     .shared = SharedExpert::plain,
     .selection_bias = Presence::optional,
     .latent = true},
    {.arch = "qwen3next",
     .title = "Qwen3-Next and Qwen3-Coder-Next",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::never,
     .renormalise = true,
     .shared = SharedExpert::gated,
     .ffn_norm = "post_attention_norm",
     .mixer = Mixer::delta_net,
     .gated_attention = true},
    {.arch = "qwen35moe",
     .title = "Qwen3.5 and 3.6 MoE (35B-A3B, 122B-A10B)",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::never,
     .renormalise = true,
     .shared = SharedExpert::gated,
     .ffn_norm = "post_attention_norm",
     .mixer = Mixer::delta_net,
     .gated_attention = true,
     .tiled_value_heads = true},
    {.arch = "qwen35",
     .title = "Qwen3.5 and 3.6, dense",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::never,
     .renormalise = false,
     .ffn_norm = "post_attention_norm",
     .mixer = Mixer::delta_net,
     .gated_attention = true,
     .tiled_value_heads = true},
    {.arch = "lfm2moe",
     .title = "LFM2 MoE (8B-A1B, 24B-A2B)",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::never,
     .renormalise = true,
     .scoring = Scoring::sigmoid,
     .selection_bias = Presence::optional,
     .mixer = Mixer::short_conv,
     .output_norm = "token_embd_norm"},
    {.arch = "lfm2",
     .title = "LFM2, dense",
     .rope = RopePairing::neox,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = Presence::never,
     .renormalise = false,
     .mixer = Mixer::short_conv,
     .output_norm = "token_embd_norm"},
};

size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t above = row[j];
            row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
            diagonal = above;
        }
    }
    return row[b.size()];
}

}  // namespace

std::span<const Recipe> recipes() noexcept {
    return kRecipes;
}

const Recipe* find_recipe(std::string_view arch) noexcept {
    for (const Recipe& recipe : kRecipes) {
        if (arch == recipe.arch) return &recipe;
    }
    return nullptr;
}

const Recipe* nearest_recipe(std::string_view arch) noexcept {
    arch = arch.substr(0, 64);
    const Recipe* best = nullptr;
    size_t least = arch.size() / 2 + 1;  // half of it rewritten is another word
    for (const Recipe& recipe : kRecipes) {
        const size_t distance = edit_distance(arch, recipe.arch);
        if (distance < least) {
            least = distance;
            best = &recipe;
        }
    }
    return best;
}

const char* architecture_list() noexcept {
    static const std::string list = [] {
        std::string all;
        for (const Recipe& recipe : kRecipes) all.append(all.empty() ? "" : " ").append(recipe.arch);
        return all;
    }();
    return list.c_str();
}

}  // namespace moepic
