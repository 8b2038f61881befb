#include "engine/decoder.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace moepic {
namespace {

// Tokens whose attention one task computes: enough to reuse a block of keys from the first-level cache.
constexpr int64_t kAttentionTokens = 32;
// Heads of latent attention that one task computes: they read the same keys.
constexpr int64_t kLatentHeads = 8;

// How much longer queries are at a position: far from the start a softmax over more keys would flatten (Nakanishi 2025).
float temperature(const Config& config, int64_t position) {
    const double steps = std::floor(static_cast<double>(position + 1) / static_cast<double>(config.temperature_length));
    return static_cast<float>(1.0 + config.temperature_scale * std::log1p(steps));
}

}  // namespace

Decoder::Decoder(const Model& model, int n_threads, int64_t n_batch, int64_t n_ctx)
    : model_(model),
      n_batch_(n_batch),
      workspace_(model.kernels(), n_threads, model.n_in_place()),
      feed_forward_(model, workspace_, n_batch),
      rope_(model.config().rope, model.rope_divisors(n_ctx)),
      window_rope_(model.config().window_rope, nullptr) {
    if (model.config().recipe->mixer == Mixer::delta_net) delta_net_.emplace(model, workspace_, n_batch);
    if (model.config().recipe->mixer == Mixer::short_conv) short_conv_.emplace(model, workspace_, n_batch);
    for (const LayerConfig& layer : model.config().layers) {
        q_rows_ = std::max(q_rows_, layer.n_head * layer.head_dim_k);
        if (model.config().recipe->latent)
            raw_rows_ = std::max(raw_rows_, layer.n_head * (model.config().latent.plain + model.config().rope.n_rot));
        if (model.config().recipe->gated_attention) raw_rows_ = std::max(raw_rows_, 2 * layer.n_head * layer.head_dim_k);
        n_head_ = std::max(n_head_, layer.n_head);
        k_rows_ = std::max(k_rows_, layer.n_head_kv * layer.head_dim_k);
        v_rows_ = std::max(v_rows_, layer.n_head_kv * layer.head_dim_v);
        out_rows_ = std::max(out_rows_, layer.n_head * layer.head_dim_v);
    }
    Carver size;
    place(size);
    region_ = Region(size.used(), "decoder scratch");
    Carver carver(region_.data());
    place(carver);
}

void Decoder::place(Carver& carver) {
    const size_t n = static_cast<size_t>(n_batch_), n_embd = static_cast<size_t>(model_.config().n_embd);
    x_ = carver.take<float>(n * n_embd);
    normed_ = carver.take<float>(n * n_embd);
    projected_ = carver.take<float>(n * n_embd);
    q_ = carver.take<float>(n * static_cast<size_t>(q_rows_));
    k_ = carver.take<float>(n * static_cast<size_t>(k_rows_));
    v_ = carver.take<float>(n * static_cast<size_t>(v_rows_));
    attended_ = carver.take<float>(n * static_cast<size_t>(out_rows_));
    angles_ = carver.take<float>(n * static_cast<size_t>(model_.config().rope.n_rot));
    window_angles_ = carver.take<float>(n * static_cast<size_t>(model_.config().window_rope.n_rot));
    if (model_.config().recipe->post_norms) sum_ = carver.take<float>(n * n_embd);
    if (model_.config().recipe->two_branches) dense_sum_ = carver.take<float>(n * n_embd);
    const LatentConfig& latent = model_.config().latent;
    values_ = carver.take<float>(n * static_cast<size_t>(n_head_ * latent.head_dim_v));
    raw_ = carver.take<float>(n * static_cast<size_t>(raw_rows_));
    compressed_ = carver.take<float>(n * static_cast<size_t>(latent.q_rank));
    ActMask in = act_mask(model_.output()), out = 0, compressed = 0, plain = 0, values = 0;
    for (int64_t il = 0; il < model_.config().n_layer; ++il) {
        const LayerWeights& w = model_.layer(il);
        in |= mixer_mask(il) | feed_forward_.input_mask(il);
        out |= act_mask(w.wo);
        compressed |= w.wq_a.w.rows ? act_mask(w.wq) : 0;
        plain |= act_mask(w.wk_b);
        values |= act_mask(w.wv_b);
    }
    acts_.reserve(carver, in, model_.config().n_embd, n_batch_);
    if (model_.config().recipe->two_branches) {
        expert_acts_.reserve(carver, in, model_.config().n_embd, n_batch_);
        router_acts_.reserve(carver, in, model_.config().n_embd, n_batch_);
    }
    out_acts_.reserve(carver, out, out_rows_, n_batch_);
    compressed_acts_.reserve(carver, compressed, latent.q_rank, n_batch_);
    plain_acts_.reserve(carver, plain, latent.plain, n_batch_ * n_head_);
    value_acts_.reserve(carver, values, latent.kv_rank, n_batch_ * n_head_);
}

void Decoder::norm(const Norm& norm, ActSet& acts, ActMask mask, const float* x, int64_t n, float* normed) {
    const ops::Kernels& kernels = workspace_.kernels();
    const int64_t n_embd = model_.config().n_embd;
    const float eps = model_.config().norm_eps;
    workspace_.pool().run(n, [&](int64_t t, int) {
        float* to = normed + t * n_embd;
        norm.apply(kernels, eps, x + t * n_embd, to, n_embd);
        acts.quantize(kernels, mask, to, n_embd, t);
    });
}

void Decoder::norm_in_place(const float* weight, float* x, int64_t n) {
    const int64_t n_embd = model_.config().n_embd;
    workspace_.pool().run(n, [&](int64_t t, int) {
        workspace_.kernels().rms_norm(x + t * n_embd, weight, model_.config().norm_eps, x + t * n_embd, n_embd);
    });
}

void Decoder::quantize(ActSet& acts, ActMask mask, const float* x, int64_t cols, int64_t n) {
    const ops::Kernels& kernels = workspace_.kernels();
    workspace_.pool().run(n, [&](int64_t t, int) { acts.quantize(kernels, mask, x + t * cols, cols, t); });
}

ActMask Decoder::mixer_mask(int64_t il) const noexcept {
    const LayerWeights& w = model_.layer(il);
    switch (model_.config().layers[static_cast<size_t>(il)].mixer) {
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
    switch (model_.config().layers[static_cast<size_t>(il)].mixer) {
        case Mixer::attention:
            return attention(il, kv, n, first_pos);
        case Mixer::delta_net:
            return delta_net_->run(il, acts_, n, state, projected_);
        case Mixer::short_conv:
            return short_conv_->run(il, acts_, n, state, projected_);
    }
}

void Decoder::forward(KvCache& kv, const SequenceState& state, const int32_t* tokens, int64_t n, int64_t first_pos, int64_t n_logits,
                      float* logits, const Probe& probe, const std::function<bool(int64_t)>& stop) {
    const Config& config = model_.config();
    const ops::Kernels& kernels = workspace_.kernels();
    const int64_t n_embd = config.n_embd;
    Timeline& timeline = feed_forward_.timeline();
    feed_forward_.begin(n);
    for (int64_t t = 0; t < n; ++t) model_.embed(tokens[t], x_ + t * n_embd);
    if (config.embedding_scale != 1.0f) kernels.scale(x_, config.embedding_scale, n * n_embd);
    rope_.fill(first_pos, n, angles_);
    window_rope_.fill(first_pos, n, window_angles_);

    for (int64_t il = 0; il < config.n_layer; ++il) {
        if (stop(il)) fail(Code::cancelled, "eval: cancelled before layer ", il);
        const LayerWeights& w = model_.layer(il);
        const int64_t start = timeline.is_on() ? now_ns() : 0;
        norm({w.attn_norm, w.attn_norm_bias}, acts_, mixer_mask(il), x_, n, normed_);
        mix(il, kv, state, n, first_pos);
        if (timeline.is_on())
            timeline.record(
                {.start_ns = start, .end_ns = now_ns(), .position = first_pos, .kind = Span::attention, .layer = static_cast<int32_t>(il)});
        // After the last layer's mixer only the tokens whose logits are wanted go on.
        const int64_t drop = il + 1 == config.n_layer && !probe ? n - n_logits : 0;
        const int64_t rest = n - drop;
        if (rest == 0) break;
        float* x = x_ + drop * n_embd;
        if (w.post_attention_norm) norm_in_place(w.post_attention_norm, projected_ + drop * n_embd, rest);
        kernels.scale_add(x, config.residual_scale, projected_ + drop * n_embd, rest * n_embd);
        feed(il, x, rest, first_pos, probe);
        if (w.output_scale) kernels.scale(x, *w.output_scale, rest * n_embd);
    }
    if (n_logits == 0) return;
    norm({model_.output_norm(), model_.output_norm_bias()}, acts_, act_mask(model_.output()), x_ + (n - n_logits) * n_embd, n_logits,
         normed_);
    const Projection head{&model_.output(), logits};
    workspace_.project({&head, 1}, acts_, n_logits);
    finish_logits(logits, n_logits);
}

// What a family does to logits after the output matrix.
void Decoder::finish_logits(float* logits, int64_t n) {
    const Config& config = model_.config();
    const ops::Kernels& kernels = workspace_.kernels();
    if (config.logit_scale != 1.0f) kernels.scale(logits, config.logit_scale, n * config.n_vocab);
    if (config.soft_cap > 0) {
        workspace_.pool().run(n, [&](int64_t t, int) { kernels.soft_cap(logits + t * config.n_vocab, config.soft_cap, config.n_vocab); });
    }
    for (int64_t t = 0; t < n; ++t) {
        for (int32_t token : config.suppressed) logits[t * config.n_vocab + token] = -INFINITY;
    }
}

void Decoder::feed(int64_t il, float* x, int64_t n, int64_t first_pos, const Probe& probe) {
    const LayerWeights& w = model_.layer(il);
    const ops::Kernels& kernels = workspace_.kernels();
    const int64_t n_embd = model_.config().n_embd;
    const ActMask mask = feed_forward_.input_mask(il);
    norm({w.ffn_norm, w.ffn_norm_bias}, acts_, mask, x, n, normed_);
    FeedForward::Work work{x, &acts_, &acts_, &acts_, x, x};
    const bool two_branches = w.expert_norm != nullptr;
    if (two_branches) {
        // The router sees the residual itself, of length one; the experts see it with their own norm.
        norm(router_norm(w, n_embd), router_acts_, mask, x, n, normed_);
        norm({w.expert_norm}, expert_acts_, mask, x, n, normed_);
        work = {x, &router_acts_, &expert_acts_, &acts_, sum_, dense_sum_};
        std::fill(dense_sum_, dense_sum_ + n * n_embd, 0.0f);
    } else if (w.post_ffn_norm) {
        work.x = work.shared_x = sum_;
    }
    if (w.post_ffn_norm) std::fill(sum_, sum_ + n * n_embd, 0.0f);
    if (probe) probe({ProbeKind::ffn_input, il, -1, -1, first_pos, n, n_embd, normed_, nullptr});
    feed_forward_.run(il, work, n, first_pos, probe);
    if (two_branches) {
        norm_in_place(w.post_expert_norm, sum_, n);
        norm_in_place(w.post_dense_norm, dense_sum_, n);
        kernels.add(sum_, dense_sum_, n * n_embd);
    }
    if (!w.post_ffn_norm) return;
    norm_in_place(w.post_ffn_norm, sum_, n);
    kernels.add(x, sum_, n * n_embd);
}

// Queries, keys and values of ordinary attention, normed and rotated, from acts_ that hold the normed input.
void Decoder::make_heads(int64_t il, int64_t n, int64_t first_pos) {
    const Config& config = model_.config();
    const LayerConfig& c = config.layers[static_cast<size_t>(il)];
    const LayerWeights& w = model_.layer(il);
    const ops::Kernels& kernels = workspace_.kernels();
    const Recipe& recipe = *config.recipe;
    const bool gated = recipe.gated_attention, own_values = w.wv.w.rows > 0;
    const int64_t q_rows = c.n_head * c.head_dim_k, k_rows = w.wk.w.rows, v_rows = c.n_head_kv * c.head_dim_v;
    const int64_t n_rot = c.window_rope ? config.window_rope.n_rot : config.rope.n_rot;
    const float* angles = c.window_rope ? window_angles_ : angles_;

    const Projection qkv[] = {{&w.wq, gated ? raw_ : q_}, {&w.wk, k_}, {&w.wv, v_}};
    workspace_.project({qkv, own_values ? size_t{3} : size_t{2}}, acts_, n);

    const auto finish_heads = [&](float* row, int64_t rows, int64_t n_head, const float* norm_weight, const float* at) {
        if (norm_weight && recipe.qk_norm == QkNorm::whole) kernels.rms_norm(row, norm_weight, config.norm_eps, row, rows);
        for (int64_t h = 0; h < n_head; ++h) {
            float* head = row + h * c.head_dim_k;
            const bool normed = (norm_weight && recipe.qk_norm == QkNorm::per_head) || (config.bare_qk_norm && c.rotates);
            if (normed && !recipe.norm_after_rope) kernels.rms_norm(head, norm_weight, config.norm_eps, head, c.head_dim_k);
            if (c.rotates) kernels.rope(head, at, n_rot, config.rope.pairing);
            if (normed && recipe.norm_after_rope) kernels.rms_norm(head, norm_weight, config.norm_eps, head, c.head_dim_k);
        }
    };
    workspace_.pool().run(n, [&](int64_t t, int) {
        for (int64_t h = 0; gated && h < c.n_head; ++h) {
            const float* query = raw_ + 2 * (t * q_rows + h * c.head_dim_k);  // its gate follows
            std::copy(query, query + c.head_dim_k, q_ + t * q_rows + h * c.head_dim_k);
        }
        float* v = v_ + t * v_rows;
        if (!own_values) std::copy(k_ + t * k_rows, k_ + (t + 1) * k_rows, v);
        for (int64_t h = 0; recipe.value_norm && h < c.n_head_kv; ++h)
            kernels.rms_norm(v + h * c.head_dim_v, nullptr, config.norm_eps, v + h * c.head_dim_v, c.head_dim_v);
        finish_heads(q_ + t * q_rows, q_rows, c.n_head, w.q_norm, angles + t * n_rot);
        finish_heads(k_ + t * k_rows, k_rows, c.n_head_kv, w.k_norm, angles + t * n_rot);
        if (!c.rotates && config.temperature_scale != 0.0) kernels.scale(q_ + t * q_rows, temperature(config, first_pos + t), q_rows);
    });
}

// The same for latent attention: k_ holds [normed latent | rotated part], which is the key, and whose latent is the value, of all heads;
// q_ the heads with their plain part carried into the latent's space.
void Decoder::make_latent_heads(int64_t il, int64_t n) {
    const Config& config = model_.config();
    const LatentConfig& latent = config.latent;
    const LayerConfig& c = config.layers[static_cast<size_t>(il)];
    const LayerWeights& w = model_.layer(il);
    const ops::Kernels& kernels = workspace_.kernels();
    const int64_t n_rot = config.rope.n_rot, raw_head = latent.plain + n_rot, raw_rows = c.n_head * raw_head;

    const bool two_steps = w.wq_a.w.rows > 0;
    const Projection first[] = {two_steps ? Projection{&w.wq_a, compressed_} : Projection{&w.wq, raw_}, {&w.wk, k_}};
    workspace_.project(first, acts_, n);
    if (two_steps) {
        workspace_.pool().run(n, [&](int64_t t, int) {
            float* row = compressed_ + t * latent.q_rank;
            kernels.rms_norm(row, w.q_norm, config.norm_eps, row, latent.q_rank);
            compressed_acts_.quantize(kernels, act_mask(w.wq), row, latent.q_rank, t);
        });
        const Projection second{&w.wq, raw_};
        workspace_.project({&second, 1}, compressed_acts_, n);
    }
    workspace_.pool().run(n, [&](int64_t t, int) {
        const float* angles = angles_ + t * n_rot;
        float* key = k_ + t * c.head_dim_k;
        kernels.rms_norm(key, w.k_norm, config.norm_eps, key, latent.kv_rank);
        kernels.rope(key + latent.kv_rank, angles, n_rot, config.rope.pairing);
        for (int64_t h = 0; h < c.n_head; ++h) {
            const float* raw = raw_ + t * raw_rows + h * raw_head;
            float* rotated = q_ + (t * c.n_head + h) * c.head_dim_k + latent.kv_rank;
            std::copy(raw + latent.plain, raw + raw_head, rotated);
            kernels.rope(rotated, angles, n_rot, config.rope.pairing);
            plain_acts_.quantize(kernels, act_mask(w.wk_b), raw, latent.plain, t * c.n_head + h);
        }
    });
    project_heads(w.wk_b, plain_acts_, c.n_head, n, q_, c.head_dim_k);
}

// y[t][head] = W_head act[t][head], heads of y `apart` floats from each other; W's heads are whole tiles, one after the other.
void Decoder::project_heads(const Linear& linear, const ActSet& acts, int64_t n_head, int64_t n, float* y, int64_t apart) {
    const ops::ActKind kind = ops::act_kind(linear.w.type);
    const int64_t rows = linear.w.rows / n_head;
    workspace_.pool().run(n_head, [&](int64_t h, int thread) {
        ops::MatmulJob job;
        job.w = linear.w;
        job.acts = acts.data(kind) + static_cast<size_t>(h) * acts.stride(kind);
        job.act_stride = acts.stride(kind) * static_cast<size_t>(n_head);
        job.n_tokens = n;
        job.y = y + h * (apart - rows);  // the kernel adds the row in W
        job.y_stride = n_head * apart;
        job.tile_begin = h * rows / ops::kTileRows;
        job.tile_end = (h + 1) * rows / ops::kTileRows;
        job.scratch = workspace_.scratch(thread);
        workspace_.kernels().matmul(job);
    });
}

// projected = Wo attention(rms(x)), for acts_ that hold the normed input.
void Decoder::attention(int64_t il, KvCache& kv, int64_t n, int64_t first_pos) {
    const Config& config = model_.config();
    const LayerConfig& c = config.layers[static_cast<size_t>(il)];
    const LayerWeights& w = model_.layer(il);
    const ops::Kernels& kernels = workspace_.kernels();
    const ops::KvView& view = kv.layer(il);
    const bool latent = config.recipe->latent;
    if (latent) {
        make_latent_heads(il, n);
    } else {
        make_heads(il, n, first_pos);
    }
    const int64_t k_rows = w.wk.w.rows, v_rows = latent ? k_rows : c.n_head_kv * c.head_dim_v;
    const float* v = latent ? k_ : v_;
    // Positions of one block share cache lines, so a task stores whole blocks.
    const int64_t first_block = first_pos / ops::kKvBlock, blocks = (first_pos + n - 1) / ops::kKvBlock - first_block + 1;
    workspace_.pool().run(blocks, [&](int64_t b, int) {
        const int64_t begin = std::max(first_pos, (first_block + b) * ops::kKvBlock),
                      end = std::min(first_pos + n, (first_block + b + 1) * ops::kKvBlock);
        for (int64_t pos = begin; pos < end; ++pos)
            kernels.kv_store(view, pos, k_ + (pos - first_pos) * k_rows, v + (pos - first_pos) * v_rows);
    });

    // Heads that share keys and values go together; where all of them do, some at a time, so that every thread has work.
    const int64_t group = latent ? std::min(c.n_head, kLatentHeads) : c.n_head / c.n_head_kv;
    const int64_t groups = (c.n_head + group - 1) / group;
    const int64_t token_blocks = (n + kAttentionTokens - 1) / kAttentionTokens;
    workspace_.pool().run(token_blocks * groups, [&](int64_t task, int thread) {
        // Later tokens see more positions: start with the longest rows so that the threads end together.
        const int64_t block = token_blocks - 1 - task / groups, first_head = task % groups * group;
        ops::AttentionJob job;
        job.kv = view;
        job.q = q_;
        job.out = attended_;
        job.n_head = c.n_head;
        job.first_pos = first_pos;
        job.token_begin = block * kAttentionTokens;
        job.token_end = std::min(job.token_begin + kAttentionTokens, n);
        job.head_begin = first_head;
        job.head_end = std::min(first_head + group, c.n_head);
        job.scale = config.attention_scale != 0.0f ? config.attention_scale : 1.0f / std::sqrt(static_cast<float>(c.head_dim_k));
        job.window = c.window;
        job.chunked = config.recipe->window_chunks;
        job.sinks = w.sinks;
        job.scratch = workspace_.scratch(thread);
        kernels.attention(job);
    });
    const float* attended = attended_;
    if (latent) {
        quantize(value_acts_, act_mask(w.wv_b), attended_, c.head_dim_v, n * c.n_head);
        project_heads(w.wv_b, value_acts_, c.n_head, n, values_, config.latent.head_dim_v);
        attended = values_;
    }
    if (config.recipe->gated_attention) {
        workspace_.pool().run(n * c.n_head, [&](int64_t i, int) {
            float* head = attended_ + i * c.head_dim_v;
            kernels.glu(ops::GluKind::sigmoid, raw_ + (2 * i + 1) * c.head_dim_k, head, head, c.head_dim_v);
        });
    }
    quantize(out_acts_, act_mask(w.wo), attended, w.wo.w.cols, n);
    const Projection out{&w.wo, projected_};
    workspace_.project({&out, 1}, out_acts_, n);
}

}  // namespace moepic
