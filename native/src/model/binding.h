// Which tensor of the file plays which part, with every shape and type checked. Points into the file; computes and copies nothing.
// A tensor the recipe has no part for is an error: nothing is skipped in silence.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "gguf/file.h"
#include "model/config.h"
#include "quant/types.h"

namespace moepic {

// Gate or up rows [first, first + count) of every expert. Inside the tensor an expert's matrix has `tensor_rows` rows, ours start at `skip`
// (the up half of a fused gate_up tensor).
struct RowSegment {
    const gguf::Tensor* tensor = nullptr;
    int64_t first = 0, count = 0;
    int64_t skip = 0, tensor_rows = 0;
    const gguf::Tensor* bias = nullptr;  // [tensor_rows, n_expert] of F32 with the same rows; null: none
};

// Down columns [first, first + count) of every expert, stored as count / file_granule matrices [n_embd, file_granule] one after the other.
// An ordinary tensor has file_granule == count.
struct ColumnSegment {
    const gguf::Tensor* tensor = nullptr;
    int64_t first = 0, count = 0;
    int64_t file_granule = 0;
};

// One set of gated feed-forward experts of equal shape. A dense feed-forward and a shared expert are sets of one.
struct ExpertBinding {
    int64_t n_expert = 0, n_embd = 0, n_ff = 0;
    Type gate_type{}, up_type{}, down_type{};
    std::vector<RowSegment> gate, up;         // ascending, covering n_ff
    std::vector<ColumnSegment> down;          // ascending, covering n_ff
    const gguf::Tensor* down_bias = nullptr;  // [n_embd, n_expert] of F32; null: none
    int64_t top = 0;                          // neurons in the top segment as the file was cut; n_ff for an ordinary file
};

// In place of q, k, v and output, in layers whose mixer is not attention.
struct StateMixerBinding {
    const gguf::Tensor* in =
        nullptr;  // delta net: [n_embd, q | k | v channels]; short convolution: [n_embd, 3 n_embd], two gates and input
    const gguf::Tensor* taps = nullptr;  // [n_taps, channels]
    const gguf::Tensor* out = nullptr;
    // Of a delta net alone.
    const gguf::Tensor* gate = nullptr;   // [n_embd, value rows], of the output
    const gguf::Tensor* beta = nullptr;   // [n_embd, n_head_v]; without alpha: [n_embd, 2 n_head_v], [betas | alphas] per key head
    const gguf::Tensor* alpha = nullptr;  // [n_embd, n_head_v]
    const gguf::Tensor* alpha_bias = nullptr;
    const gguf::Tensor* rate = nullptr;  // [n_head_v], negative: decay = e^(rate softplus(alpha + bias))
    const gguf::Tensor* norm = nullptr;  // [head_dim_v]
};

struct LayerBinding {
    const gguf::Tensor *attn_norm = nullptr, *wq = nullptr, *wk = nullptr, *wv = nullptr, *wo = nullptr;
    const gguf::Tensor *bq = nullptr, *bk = nullptr, *bv = nullptr, *bo = nullptr;
    // With latent attention wq makes heads [plain | rotated] (from wq_a's output where there is one, normed by q_norm), wk makes
    // [latent | rotated] (the latent normed by k_norm), and there is no wv.
    const gguf::Tensor* wq_a = nullptr;   // [n_embd, q_rank]
    const gguf::Tensor* wk_b = nullptr;   // [plain, kv_rank, n_head]
    const gguf::Tensor* wv_b = nullptr;   // [kv_rank, head_dim_v, n_head]
    const gguf::Tensor* wkv_b = nullptr;  // in place of both: [kv_rank, n_head * (plain + head_dim_v)]
    const gguf::Tensor *q_norm = nullptr, *k_norm = nullptr;
    const gguf::Tensor* sinks = nullptr;  // [n_head]
    StateMixerBinding state_mixer;
    const gguf::Tensor *attn_norm_bias = nullptr, *ffn_norm_bias = nullptr;
    const gguf::Tensor *post_attention_norm = nullptr, *post_ffn_norm = nullptr;
    // Of a layer with two branches: ffn_norm and post_dense_norm are the dense one's.
    const gguf::Tensor *expert_norm = nullptr, *post_expert_norm = nullptr, *post_dense_norm = nullptr;
    const gguf::Tensor* router_norm = nullptr;   // [n_embd], multiplies the normed input of the router
    const gguf::Tensor* expert_scale = nullptr;  // [n_expert], multiplies routing weights
    const gguf::Tensor* output_scale = nullptr;  // [1], multiplies what the layer gives
    const gguf::Tensor* ffn_norm = nullptr;
    const gguf::Tensor* router = nullptr;          // [n_embd, n_expert]
    const gguf::Tensor* router_bias = nullptr;     // [n_expert]
    const gguf::Tensor* selection_bias = nullptr;  // [n_expert]
    std::optional<ExpertBinding> routed;
    std::optional<ExpertBinding> shared;        // a shared expert, or the dense feed-forward
    const gguf::Tensor* shared_gate = nullptr;  // [n_embd]
};

struct ModelBinding {
    const gguf::Tensor *token_embd = nullptr, *output_norm = nullptr, *output = nullptr;  // output == token_embd when tied
    const gguf::Tensor *output_norm_bias = nullptr, *output_bias = nullptr;
    const gguf::Tensor *rope_long = nullptr, *rope_short = nullptr;  // divisors of long_short scaling, [n_rot / 2]
    const gguf::Tensor* rope_freqs = nullptr;                        // divisors of the rope frequencies, [n_rot / 2]
    std::vector<LayerBinding> layers;
};

// Throws format (missing tensor, wrong shape) or unsupported (a type or a tensor this build can't place).
ModelBinding bind_tensors(const gguf::File& file, const Config& config);

}  // namespace moepic
