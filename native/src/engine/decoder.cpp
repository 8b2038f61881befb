#include "engine/decoder.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace moepic {
namespace {

// Tokens whose logits are computed at a time where they have to be brought to the host.
constexpr int64_t kLogitRows = 32;

// How much longer queries are at a position: far from the start a softmax over more keys would flatten (Nakanishi 2025).
float temperature(const Config& config, int64_t position) {
    const double steps = std::floor(static_cast<double>(position + 1) / static_cast<double>(config.temperature_length));
    return static_cast<float>(1.0 + config.temperature_scale * std::log1p(steps));
}

}  // namespace

Decoder::Decoder(const Model& model, Workspace& workspace, Steps& steps, FeedForward& feed_forward, const KvCache& kv, int64_t n_batch,
                 int64_t n_ctx)
    : model_(model),
      config_(model.config()),
      n_batch_(n_batch),
      workspace_(workspace),
      steps_(steps),
      feed_forward_(feed_forward),
      rope_(config_.rope, model.rope_divisors(n_ctx)),
      window_rope_(config_.window_rope, nullptr),
      logit_rows_(steps.is_host() ? 0 : std::min(n_batch, kLogitRows)) {
    if (config_.recipe->mixer == Mixer::delta_net) delta_net_.emplace(config_, steps, n_batch);
    if (config_.recipe->mixer == Mixer::short_conv) short_conv_.emplace(config_, steps, n_batch);
    for (int64_t il = 0; il < config_.n_layer; ++il) {
        const LayerConfig& layer = config_.layers[static_cast<size_t>(il)];
        q_rows_ = std::max(q_rows_, layer.n_head * layer.head_dim_k);
        if (config_.recipe->latent) raw_rows_ = std::max(raw_rows_, layer.n_head * (config_.latent.plain + config_.rope.n_rot));
        if (config_.recipe->gated_attention) raw_rows_ = std::max(raw_rows_, 2 * layer.n_head * layer.head_dim_k);
        n_head_ = std::max(n_head_, layer.n_head);
        k_rows_ = std::max(k_rows_, layer.n_head_kv * layer.head_dim_k);
        v_rows_ = std::max(v_rows_, layer.n_head_kv * layer.head_dim_v);
        out_rows_ = std::max(out_rows_, layer.n_head * layer.head_dim_v);
        if (layer.mixer == Mixer::attention)
            attention_bytes_ = std::max(attention_bytes_, steps.attention_scratch(kv.layer(il), n_batch, layer.n_head));
    }
    Carver size;
    place(size);
    memory_ = steps.reserve(size.used(), "decoder scratch");
    Carver carver(memory_.data());
    place(carver);
    size_t staged = Steps::staged_bytes<device::PassPlace>(1);
    for (const int64_t floats : {config_.n_embd, config_.rope.n_rot, config_.window_rope.n_rot, int64_t{q_scale_ != nullptr}})
        staged += Steps::staged_bytes<float>(n_batch * floats);
    steps.reserve_transfers(staged, std::max(logit_rows_ * config_.n_vocab, n_batch * config_.n_embd));
}

void Decoder::place(Carver& carver) {
    const size_t n = static_cast<size_t>(n_batch_), n_embd = static_cast<size_t>(config_.n_embd);
    place_ = carver.take<device::PassPlace>(1);
    x_ = carver.take<float>(n * n_embd);
    normed_ = carver.take<float>(n * n_embd);
    projected_ = carver.take<float>(n * n_embd);
    q_ = carver.take<float>(n * static_cast<size_t>(q_rows_));
    k_ = carver.take<float>(n * static_cast<size_t>(k_rows_));
    v_ = carver.take<float>(n * static_cast<size_t>(v_rows_));
    attended_ = carver.take<float>(n * static_cast<size_t>(out_rows_));
    angles_ = carver.take<float>(n * static_cast<size_t>(config_.rope.n_rot));
    window_angles_ = carver.take<float>(n * static_cast<size_t>(config_.window_rope.n_rot));
    if (config_.temperature_scale != 0.0) q_scale_ = carver.take<float>(n);
    attention_scratch_ = carver.take<std::byte>(attention_bytes_);
    logits_ = carver.take<float>(static_cast<size_t>(logit_rows_ * config_.n_vocab));
    if (config_.recipe->post_norms) sum_ = carver.take<float>(n * n_embd);
    if (config_.recipe->two_branches) dense_sum_ = carver.take<float>(n * n_embd);
    const LatentConfig& latent = config_.latent;
    values_ = carver.take<float>(n * static_cast<size_t>(n_head_ * latent.head_dim_v));
    raw_ = carver.take<float>(n * static_cast<size_t>(raw_rows_));
    compressed_ = carver.take<float>(n * static_cast<size_t>(latent.q_rank));
    ActMask in = act_mask(steps_.weights().output), out = 0, compressed = 0, plain = 0, values = 0;
    for (int64_t il = 0; il < config_.n_layer; ++il) {
        const LayerWeights& w = steps_.layer(il);
        in |= mixer_mask(il) | feed_forward_.input_mask(il);
        out |= act_mask(w.wo);
        compressed |= w.wq_a.w.rows ? act_mask(w.wq) : 0;
        plain |= act_mask(w.wk_b);
        values |= act_mask(w.wv_b);
    }
    acts_.reserve(carver, in, config_.n_embd, n_batch_);
    if (config_.recipe->two_branches) {
        expert_acts_.reserve(carver, in, config_.n_embd, n_batch_);
        router_acts_.reserve(carver, in, config_.n_embd, n_batch_);
    }
    out_acts_.reserve(carver, out, out_rows_, n_batch_);
    compressed_acts_.reserve(carver, compressed, latent.q_rank, n_batch_);
    plain_acts_.reserve(carver, plain, latent.plain, n_batch_ * n_head_);
    value_acts_.reserve(carver, values, latent.kv_rank, n_batch_ * n_head_);
}

void Decoder::norm(const Norm& norm, const ActSet& acts, ActMask mask, const float* x, int64_t n, float* normed) {
    device::NormJob job;
    job.x = x;
    job.weight = norm.weight;
    job.bias = norm.bias;
    job.eps = config_.norm_eps;
    job.factor = norm.factor;
    job.y = normed;
    job.n = n;
    job.cols = job.stride = config_.n_embd;
    job.acts = acts.acts();
    job.mask = mask;
    steps_.norm(job);
}

void Decoder::norm_in_place(const float* weight, float* x, int64_t n) {
    norm({weight}, {}, 0, x, n, x);
}

ActMask Decoder::mixer_mask(int64_t il) const noexcept {
    const LayerWeights& w = steps_.layer(il);
    switch (config_.layers[static_cast<size_t>(il)].mixer) {
        case Mixer::attention:
            break;
        case Mixer::delta_net:
            return DeltaNet::input_mask(w.state_mixer);
        case Mixer::short_conv:
            return ShortConv::input_mask(w.state_mixer);
    }
    return act_mask(w.wq_a.w.rows ? w.wq_a : w.wq) | act_mask(w.wk) | act_mask(w.wv);
}

void Decoder::mix(int64_t il, KvCache& kv, const SequenceState& state, int64_t n, int64_t first_pos) {
    switch (config_.layers[static_cast<size_t>(il)].mixer) {
        case Mixer::attention:
            return attention(il, kv, n, first_pos);
        case Mixer::delta_net:
            return delta_net_->run(il, acts_, n, state, place_, projected_);
        case Mixer::short_conv:
            return short_conv_->run(il, acts_, n, state, place_, projected_);
    }
}

void Decoder::bring_in(const SequenceState& state, const int32_t* tokens, int64_t n, int64_t first_pos) {
    const int64_t n_embd = config_.n_embd;
    device::PassPlace* const place = steps_.stage(place_, 1);
    place->first_pos = first_pos;
    std::copy(state.legs().begin(), state.legs().end(), place->legs);
    float* x = steps_.stage(x_, n * n_embd);
    for (int64_t t = 0; t < n; ++t) model_.embed(tokens[t], x + t * n_embd);
    if (config_.embedding_scale != 1.0f) workspace_.kernels().scale(x, config_.embedding_scale, n * n_embd);
    rope_.fill(first_pos, n, steps_.stage(angles_, n * config_.rope.n_rot));
    window_rope_.fill(first_pos, n, steps_.stage(window_angles_, n * config_.window_rope.n_rot));
    if (q_scale_) {
        float* scale = steps_.stage(q_scale_, n);
        for (int64_t t = 0; t < n; ++t) scale[t] = temperature(config_, first_pos + t);
    }
    steps_.send();
}

void Decoder::forward(KvCache& kv, const SequenceState& state, const int32_t* tokens, int64_t n, int64_t first_pos, int64_t n_logits,
                      float* logits, const Probe& probe, const std::function<bool(int64_t)>& stop) {
    steps_.begin();
    feed_forward_.begin(n);
    bring_in(state, tokens, n, first_pos);
    if (n == 1 && n_logits == 1 && run_token(kv, state, first_pos, logits, probe, stop)) return;
    run_layers(kv, state, n, first_pos, n_logits, probe, stop);
    if (n_logits > 0) head(n, n_logits, logits);
}

// One token as a whole, where whoever runs the steps may know it already. Its launches depend on the chunk of its position alone.
bool Decoder::run_token(KvCache& kv, const SequenceState& state, int64_t first_pos, float* logits, const Probe& probe,
                        const std::function<bool(int64_t)>& stop) {
    if (steps_.is_host() || feed_forward_.timeline().is_on()) return false;
    if (stop(0)) fail(Code::cancelled, "eval: cancelled before a token");
    const int64_t start = now_ns();
    const bool has_run = feed_forward_.run_whole(first_pos / ops::kKvChunk, probe, [&] {
        run_layers(kv, state, 1, first_pos, 1, probe, stop);
        project(x_, 1, logits_);
    });
    if (!has_run) return false;
    std::copy_n(steps_.read(logits_, config_.n_vocab), config_.n_vocab, logits);
    feed_forward_.note_whole(1e-9 * static_cast<double>(now_ns() - start));
    finish_logits(logits, 1);
    return true;
}

void Decoder::run_layers(KvCache& kv, const SequenceState& state, int64_t n, int64_t first_pos, int64_t n_logits, const Probe& probe,
                         const std::function<bool(int64_t)>& stop) {
    const int64_t n_embd = config_.n_embd;
    Timeline& timeline = feed_forward_.timeline();
    for (int64_t il = 0; il < config_.n_layer; ++il) {
        if (stop(il)) fail(Code::cancelled, "eval: cancelled before layer ", il);
        const LayerWeights& w = steps_.layer(il);
        const int64_t start = timeline.is_on() ? now_ns() : 0;
        norm({w.attn_norm, w.attn_norm_bias}, acts_, mixer_mask(il), x_, n, normed_);
        mix(il, kv, state, n, first_pos);
        if (timeline.is_on())
            timeline.record(
                {.start_ns = start, .end_ns = now_ns(), .position = first_pos, .kind = Span::attention, .layer = static_cast<int32_t>(il)});
        // After the last layer's mixer only the tokens whose logits are wanted go on.
        const int64_t drop = il + 1 == config_.n_layer && !probe ? n - n_logits : 0;
        const int64_t rest = n - drop;
        if (rest == 0) break;
        float* x = x_ + drop * n_embd;
        if (w.post_attention_norm) norm_in_place(w.post_attention_norm, projected_ + drop * n_embd, rest);
        steps_.scale_add(x, config_.residual_scale, projected_ + drop * n_embd, rest * n_embd);
        feed(il, x, rest, first_pos, probe);
        if (w.output_scale) steps_.scale(x, *model_.layer(il).output_scale, rest * n_embd);
    }
}

void Decoder::project(const float* x, int64_t n, float* logits) {
    const WeightsView& weights = steps_.weights();
    norm({weights.output_norm, weights.output_norm_bias}, acts_, act_mask(weights.output), x, n, normed_);
    steps_.matmul({matmul_job(weights.output, acts_, logits)}, n);
}

void Decoder::head(int64_t n_tokens, int64_t n, float* logits) {
    const int64_t rows = steps_.is_host() ? n : logit_rows_;
    for (int64_t first = 0; first < n; first += rows) {
        const int64_t count = std::min(rows, n - first);
        float* to = logits + first * config_.n_vocab;
        project(x_ + (n_tokens - n + first) * config_.n_embd, count, steps_.is_host() ? to : logits_);
        if (!steps_.is_host()) std::copy_n(steps_.read(logits_, count * config_.n_vocab), count * config_.n_vocab, to);
    }
    finish_logits(logits, n);
}

// What a family does to logits after the output matrix; on the host, which wants them.
void Decoder::finish_logits(float* logits, int64_t n) {
    const ops::Kernels& kernels = workspace_.kernels();
    if (config_.logit_scale != 1.0f) kernels.scale(logits, config_.logit_scale, n * config_.n_vocab);
    if (config_.soft_cap > 0) {
        workspace_.pool().run(n,
                              [&](int64_t t, int) { kernels.soft_cap(logits + t * config_.n_vocab, config_.soft_cap, config_.n_vocab); });
    }
    for (int64_t t = 0; t < n; ++t) {
        for (int32_t token : config_.suppressed) logits[t * config_.n_vocab + token] = -INFINITY;
    }
}

void Decoder::feed(int64_t il, float* x, int64_t n, int64_t first_pos, const Probe& probe) {
    const LayerWeights& w = steps_.layer(il);
    const int64_t n_embd = config_.n_embd;
    const ActMask mask = feed_forward_.input_mask(il);
    norm({w.ffn_norm, w.ffn_norm_bias}, acts_, mask, x, n, normed_);
    FeedForward::Work work{x, &acts_, &acts_, &acts_, x, x};
    const bool two_branches = w.expert_norm != nullptr;
    if (two_branches) {
        // The router sees the residual itself, of length one; the experts see it with their own norm.
        norm(router_norm(w, n_embd), router_acts_, mask, x, n, normed_);
        norm({w.expert_norm}, expert_acts_, mask, x, n, normed_);
        work = {x, &router_acts_, &expert_acts_, &acts_, sum_, dense_sum_};
        steps_.clear(dense_sum_, n * n_embd);
    } else if (w.post_ffn_norm) {
        work.x = work.shared_x = sum_;
    }
    if (w.post_ffn_norm) steps_.clear(sum_, n * n_embd);
    if (probe) probe({ProbeKind::ffn_input, il, -1, -1, first_pos, n, n_embd, steps_.read(normed_, n * n_embd), nullptr});
    feed_forward_.run(il, work, n, first_pos, probe);
    if (two_branches) {
        norm_in_place(w.post_expert_norm, sum_, n);
        norm_in_place(w.post_dense_norm, dense_sum_, n);
        steps_.add(sum_, dense_sum_, n * n_embd);
    }
    if (!w.post_ffn_norm) return;
    norm_in_place(w.post_ffn_norm, sum_, n);
    steps_.add(x, sum_, n * n_embd);
}

// Queries, keys and values of ordinary attention, normed and rotated, from acts_ that hold the normed input.
void Decoder::make_heads(int64_t il, int64_t n) {
    const LayerConfig& c = config_.layers[static_cast<size_t>(il)];
    const LayerWeights& w = steps_.layer(il);
    const Recipe& recipe = *config_.recipe;
    steps_.matmul({matmul_job(w.wq, acts_, recipe.gated_attention ? raw_ : q_), matmul_job(w.wk, acts_, k_), matmul_job(w.wv, acts_, v_)},
                  n);
    device::HeadsJob job;
    job.n = n;
    job.n_head = c.n_head;
    job.n_head_kv = c.n_head_kv;
    job.head_dim_k = c.head_dim_k;
    job.head_dim_v = c.head_dim_v;
    job.gated_q = recipe.gated_attention ? raw_ : nullptr;
    job.q = q_;
    job.k = k_;
    job.v = v_;
    job.copies_values = w.wv.w.rows == 0;
    job.value_norm = recipe.value_norm;
    job.whole_norm = w.q_norm && recipe.qk_norm == QkNorm::whole;
    job.head_norm = (w.q_norm && recipe.qk_norm == QkNorm::per_head) || (config_.bare_qk_norm && c.rotates);
    job.norm_after_rope = recipe.norm_after_rope;
    job.q_norm = w.q_norm;
    job.k_norm = w.k_norm;
    job.eps = config_.norm_eps;
    job.rotates = c.rotates;
    job.angles = c.window_rope ? window_angles_ : angles_;
    job.n_rot = c.window_rope ? config_.window_rope.n_rot : config_.rope.n_rot;
    job.pairing = config_.rope.pairing;
    job.q_scale = c.rotates ? nullptr : q_scale_;
    steps_.heads(job);
}

// The same for latent attention: k_ holds [normed latent | rotated part], which is the key, and whose latent is the value, of all heads;
// q_ the heads with their plain part carried into the latent's space.
void Decoder::make_latent_heads(int64_t il, int64_t n) {
    const LatentConfig& latent = config_.latent;
    const LayerConfig& c = config_.layers[static_cast<size_t>(il)];
    const LayerWeights& w = steps_.layer(il);

    const bool two_steps = w.wq_a.w.rows > 0;
    steps_.matmul({two_steps ? matmul_job(w.wq_a, acts_, compressed_) : matmul_job(w.wq, acts_, raw_), matmul_job(w.wk, acts_, k_)}, n);
    if (two_steps) {
        device::NormJob norm;
        norm.x = norm.y = compressed_;
        norm.weight = w.q_norm;
        norm.eps = config_.norm_eps;
        norm.n = n;
        norm.cols = norm.stride = latent.q_rank;
        norm.acts = compressed_acts_.acts();
        norm.mask = act_mask(w.wq);
        steps_.norm(norm);
        steps_.matmul({matmul_job(w.wq, compressed_acts_, raw_)}, n);
    }
    device::LatentHeadsJob job;
    job.n = n;
    job.n_head = c.n_head;
    job.plain = latent.plain;
    job.kv_rank = latent.kv_rank;
    job.n_rot = config_.rope.n_rot;
    job.raw = raw_;
    job.q = q_;
    job.k = k_;
    job.k_norm = w.k_norm;
    job.eps = config_.norm_eps;
    job.angles = angles_;
    job.pairing = config_.rope.pairing;
    job.plain_acts = plain_acts_.acts();
    job.mask = act_mask(w.wk_b);
    steps_.latent_heads(job);
    steps_.matmul({matmul_of_heads(w.wk_b, plain_acts_, c.n_head, q_, c.head_dim_k)}, n);
}

// projected = Wo attention(rms(x)), for acts_ that hold the normed input.
void Decoder::attention(int64_t il, KvCache& kv, int64_t n, int64_t first_pos) {
    const LayerConfig& c = config_.layers[static_cast<size_t>(il)];
    const LayerWeights& w = steps_.layer(il);
    const bool latent = config_.recipe->latent;
    if (latent) {
        make_latent_heads(il, n);
    } else {
        make_heads(il, n);
    }
    device::KvStoreJob store;
    store.kv = kv.layer(il);
    store.k = k_;
    store.k_stride = w.wk.w.rows;
    store.v = latent ? k_ : v_;
    store.v_stride = latent ? store.k_stride : c.n_head_kv * c.head_dim_v;
    store.place = place_;
    store.n = n;
    steps_.kv_store(store);

    device::AttentionJob job;
    job.kv = kv.layer(il);
    job.q = q_;
    job.out = attended_;
    job.n = n;
    job.n_head = c.n_head;
    job.place = place_;
    // A token's launch does for all positions of its chunk, so that it can be launched again at each of them.
    const int64_t chunk = first_pos - first_pos % ops::kKvChunk;
    job.lowest_pos = n == 1 ? chunk : first_pos;
    job.highest_pos = n == 1 ? chunk + ops::kKvChunk - 1 : first_pos;
    job.scale = config_.attention_scale != 0.0f ? config_.attention_scale : 1.0f / std::sqrt(static_cast<float>(c.head_dim_k));
    job.window = c.window;
    job.chunked = config_.recipe->window_chunks;
    job.sinks = w.sinks;
    job.scratch = attention_scratch_;
    job.scratch_bytes = attention_bytes_;
    steps_.attention(job);

    const float* attended = attended_;
    if (latent) {
        steps_.quantize(act_mask(w.wv_b), attended_, c.head_dim_v, n * c.n_head, value_acts_.acts());
        steps_.matmul({matmul_of_heads(w.wv_b, value_acts_, c.n_head, values_, config_.latent.head_dim_v)}, n);
        attended = values_;
    }
    if (config_.recipe->gated_attention) {
        device::GluJob gate;
        gate.kind = ops::GluKind::sigmoid;
        gate.gate = raw_ + c.head_dim_k;  // after each head's query
        gate.gate_stride = 2 * c.head_dim_k;
        gate.up = gate.out = attended_;
        gate.up_stride = gate.out_stride = gate.cols = c.head_dim_v;
        gate.n = n * c.n_head;
        steps_.glu(gate);
    }
    steps_.quantize(act_mask(w.wo), attended, w.wo.w.cols, n, out_acts_.acts());
    steps_.matmul({matmul_job(w.wo, out_acts_, projected_)}, n);
}

}  // namespace moepic
