// The forward pass of a decoder-only transformer, flat: for each layer norm, projections, rope, attention, norm, feed-forward. Layers that
// keep a state instead of keys and values have another mixer in attention's place.
// Knows the order of things and the buffers between them; what runs a step is behind steps.h, the experts in feed_forward.h, the mixers in
// delta_net.h and short_conv.h, the positions in the KV cache.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "engine/delta_net.h"
#include "engine/feed_forward.h"
#include "engine/kv_cache.h"
#include "engine/norm.h"
#include "engine/probe.h"
#include "engine/rope_table.h"
#include "engine/sequence_state.h"
#include "engine/short_conv.h"
#include "engine/steps.h"
#include "engine/workspace.h"

namespace moepic {

class Decoder {
public:
    // The workspace makes what the host makes of a pass: embeddings, and what a family does to logits. `kv`: as every forward() will have
    // it.
    Decoder(const Model& model, Workspace& workspace, Steps& steps, FeedForward& feed_forward, const KvCache& kv, int64_t n_batch,
            int64_t n_ctx);

    // Tokens at positions [first_pos, first_pos + n), n <= n_batch. Logits [n_logits][n_vocab] of the last n_logits tokens.
    // `state` was told of the batch by begin(); a model without states needs none.
    // `stop` is asked once per layer; when it answers true the pass ends with Error(cancelled), and only KV beyond first_pos and slots of
    // the batch were written.
    void forward(KvCache& kv, const SequenceState& state, const int32_t* tokens, int64_t n, int64_t first_pos, int64_t n_logits,
                 float* logits, const Probe& probe, const std::function<bool(int64_t layer)>& stop);

    uint64_t scratch_bytes() const noexcept {
        return memory_.size() + (delta_net_ ? delta_net_->scratch_bytes() : 0) + (short_conv_ ? short_conv_->scratch_bytes() : 0);
    }

private:
    void place(Carver& carver);
    void run_layers(KvCache& kv, const SequenceState& state, int64_t n, int64_t first_pos, int64_t n_logits, const Probe& probe,
                    const std::function<bool(int64_t layer)>& stop);
    bool run_token(KvCache& kv, const SequenceState& state, int64_t first_pos, float* logits, const Probe& probe,
                   const std::function<bool(int64_t layer)>& stop);
    // place_, x_, angles and factors of the tokens, made on the host.
    void bring_in(const SequenceState& state, const int32_t* tokens, int64_t n, int64_t first_pos);
    // projected = mixer(rms(x)) of layer il, whichever it has, for acts_ that hold the normed input.
    void mix(int64_t il, KvCache& kv, const SequenceState& state, int64_t n, int64_t first_pos);
    ActMask mixer_mask(int64_t il) const noexcept;
    void attention(int64_t il, KvCache& kv, int64_t n, int64_t first_pos);
    void make_heads(int64_t il, int64_t n);
    void make_latent_heads(int64_t il, int64_t n);
    // x += feed-forward(norm(x)), with whatever norms and branches the layer has around it.
    void feed(int64_t il, float* x, int64_t n, int64_t first_pos, const Probe& probe);
    // acts = quantized(norm(x)) for every token.
    void norm(const Norm& norm, const ActSet& acts, ActMask mask, const float* x, int64_t n, float* normed);
    void norm_in_place(const float* weight, float* x, int64_t n);
    // Logits of the last n of n_tokens tokens.
    void head(int64_t n_tokens, int64_t n, float* logits);
    // Of n tokens, to memory of the steps.
    void project(const float* x, int64_t n, float* logits);
    void finish_logits(float* logits, int64_t n);

    const Model& model_;
    const Config& config_;
    const int64_t n_batch_;
    Workspace& workspace_;
    Steps& steps_;
    FeedForward& feed_forward_;
    std::optional<DeltaNet> delta_net_;
    std::optional<ShortConv> short_conv_;
    RopeTable rope_, window_rope_;
    Memory memory_;
    int64_t q_rows_ = 0, k_rows_ = 0, v_rows_ = 0, out_rows_ = 0;  // widest layer
    size_t attention_bytes_ = 0;
    std::byte* attention_scratch_ = nullptr;
    device::PassPlace* place_ = nullptr;
    float *x_ = nullptr, *normed_ = nullptr;            // [n_batch][n_embd]
    float *q_ = nullptr, *k_ = nullptr, *v_ = nullptr;  // [n_batch][rows]
    float *attended_ = nullptr, *projected_ = nullptr, *angles_ = nullptr, *window_angles_ = nullptr;
    float* q_scale_ = nullptr;                     // [n_batch], where queries grow with the position
    float *sum_ = nullptr, *dense_sum_ = nullptr;  // [n_batch][n_embd] where sums are normed before they are added
    int64_t logit_rows_ = 0;                       // of logits_
    float* logits_ = nullptr;                      // where steps can't write the caller's
    ActSet acts_, out_acts_, expert_acts_, router_acts_;
    // Heads before they are carried into the latent's space, of latent attention, or heads with their gates, of gated attention; compressed
    // queries and attended values of the heads, of latent attention.
    int64_t raw_rows_ = 0, n_head_ = 0;
    float *raw_ = nullptr, *compressed_ = nullptr, *values_ = nullptr;
    ActSet compressed_acts_, plain_acts_, value_acts_;
};

}  // namespace moepic
