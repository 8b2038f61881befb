// What distinguishes one architecture from another, as data. A recipe is one row; the engine reads its fields and never the name.
// Adding an architecture means adding a row (and a piece to the engine only where the row needs a word that is not here yet).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "ops/ops.h"

namespace moepic {

enum class QkNorm : uint8_t {
    none,
    per_head,  // RMS over each head, weight [head_dim]
    bare,      // RMS over each head without a weight, in layers that rotate
    whole,     // RMS over the whole projection, weight [n_head * head_dim]
};

enum class NormKind : uint8_t {
    rms,
    layer,  // LayerNorm, with biases
};

enum class Presence : uint8_t { never, optional, required };

enum class SharedExpert : uint8_t {
    none,
    plain,
    gated,  // its output times sigmoid(ffn_gate_inp_shexp . x)
};

// What a router's logits become before the best k are taken; the values are those of GGUF's expert_gating_func.
enum class Scoring : uint8_t {
    softmax = 1,
    sigmoid = 2,
    softmax_selected = 3,  // best k of the logits, then softmax over those
    // Two experts, chosen one after the other; the weight of each is its share of a softmax over the logits near it. GGUF has no number for
    // it, so it is never in a file. SparseMixer (Liu et al. 2024).
    sparse_mixer = 255,
};

// What lets a token see earlier ones.
enum class Mixer : uint8_t {
    attention,   // keys and values of every position
    delta_net,   // a short convolution, then a matrix per head that each token decays and corrects (gated delta net)
    short_conv,  // a short convolution between two gates
};

struct Recipe {
    const char* arch;   // GGUF general.architecture
    const char* title;  // for people
    ops::RopePairing rope;
    QkNorm qk_norm;
    Presence qkv_bias;  // attn_q.bias, attn_k.bias, attn_v.bias
    bool renormalise;   // routing weights of the selected experts sum to one, unless expert_weights_norm says otherwise
    SharedExpert shared = SharedExpert::none;
    ops::GluKind glu = ops::GluKind::silu;
    const char* ffn_norm = "ffn_norm";   // name of the norm before the feed-forward
    Scoring scoring = Scoring::softmax;  // unless expert_gating_func says otherwise
    bool expert_bias = false;            // of the router and of gate, up and down of every expert
    bool sinks = false;                  // attn_sinks: logits that join each softmax without a value
    int64_t window_period = 0;  // every n-th layer sees all positions, the others a window, unless sliding_window_pattern says otherwise
    bool yarn_truncate = true;  // YaRN's ramp begins and ends at whole dimensions
    bool qk_norm_optional = false;              // some models of the architecture have no q/k norm
    bool norm_after_rope = false;               // q and k are normed after they are rotated
    Presence selection_bias = Presence::never;  // exp_probs_b.bias, added to scores for the choice of experts only
    bool latent = false;                        // multi-head latent attention (MLA): keys and values are read out of one latent per token
    NormKind norm = NormKind::rms;              // of the model's width: attn_norm, the feed-forward's, output_norm
    Presence output_bias = Presence::never;     // output.bias
    bool embedding_root = false;                // embeddings are multiplied by the root of their width
    bool post_norms = false;                    // what attention and feed-forward give is normed before it is added
    double window_rope_base = 0.0;  // rope of layers with a window has a base of its own, unless rope.freq_base_swa says another; 0: no
    int64_t default_window = 0;     // what attention.sliding_window is when the file has none; 0: it must have one
    bool window_chunks = false;     // windows do not slide: attention.sliding_window is the length of chunks
    bool rope_in_windows = false;   // layers that see all positions do not rotate, where others don't; their queries grow with the position
    bool rope_divisors = false;     // rope_freqs must be there, for the layers without a window
    bool unit_attention = false;    // q . k is not scaled unless attention.scale says otherwise
    bool value_norm = false;        // RMS over each value head, without a weight
    bool value_from_key = false;    // where there is no attn_v, values are the keys before their norm
    bool two_branches = false;      // a layer with experts has the dense feed-forward beside them, each with norms of its own
    bool weight_on_input = false;   // routing weights multiply what an expert is given, not what it gives
    int64_t wide_scale_layers = 0;  // a model with this many layers scales q . k by the root of n_head / n_embd
    int64_t no_qk_norm_experts = 0;           // a model with this many experts has no q/k norm
    bool multipliers = false;                 // embedding_scale, residual_scale, attention.scale; logits are divided by logit_scale
    Mixer mixer = Mixer::attention;           // of the layers that are not attention; which ones those are, the file says
    bool gated_attention = false;             // attn_q makes [query | gate] per head; a head's output is multiplied by sigmoid(gate)
    bool tiled_value_heads = false;           // value head h of a delta net reads key head h mod n_head_k, instead of whole groups
    const char* output_norm = "output_norm";  // name of the last norm
};

std::span<const Recipe> recipes() noexcept;
const Recipe* find_recipe(std::string_view arch) noexcept;
// The known id closest in spelling, for error messages; null when none is near.
const Recipe* nearest_recipe(std::string_view arch) noexcept;
// All ids, separated by spaces; static.
const char* architecture_list() noexcept;

}  // namespace moepic
