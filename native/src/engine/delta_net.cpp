#include "engine/delta_net.h"

#include <algorithm>
#include <cmath>

#include "model/mixers.h"
#include "ops/decay.h"

namespace moepic {
namespace {

// Channels convolved by one task: some kilobytes per token.
constexpr int64_t kConvChannels = 256;
// Added to the squared length of queries and keys; a constant of the architecture, not the norms' epsilon.
constexpr float kLengthEps = 1e-6f;

}  // namespace

ActMask DeltaNet::input_mask(const StateMixerWeights& w) noexcept {
    return act_mask(w.in) | act_mask(w.gate) | act_mask(w.beta) | act_mask(w.alpha);
}

DeltaNet::DeltaNet(const Model& model, Workspace& workspace, int64_t n_batch)
    : model_(model), workspace_(workspace), n_batch_(n_batch), config_(model.config().delta_net) {
    Carver size;
    place(size);
    region_ = Region(size.used(), "delta net scratch");
    Carver carver(region_.data());
    place(carver);
}

void DeltaNet::place(Carver& carver) {
    const auto floats = [&](int64_t per_token) { return carver.take<float>(static_cast<size_t>(n_batch_ * per_token)); };
    channels_ = floats(config_.n_channels());
    z_ = floats(config_.value_rows());
    mixed_ = floats(config_.value_rows());
    raw_beta_ = floats(2 * config_.n_head_v);
    alpha_ = floats(config_.n_head_v);
    beta_ = floats(config_.n_head_v);
    decay_ = floats(config_.n_head_v);
    ActMask out = 0;
    for (int64_t il = 0; il < model_.config().n_layer; ++il) {
        if (model_.config().layers[static_cast<size_t>(il)].mixer == Mixer::delta_net) out |= act_mask(model_.layer(il).state_mixer.out);
    }
    out_acts_.reserve(carver, out, config_.value_rows(), n_batch_);
}

void DeltaNet::run(int64_t il, const ActSet& acts, int64_t n, const SequenceState& state, float* out) {
    const StateMixerWeights& w = model_.layer(il).state_mixer;
    const ops::Kernels& kernels = workspace_.kernels();
    const Projection inputs[] = {{&w.in, channels_}, {&w.gate, z_}, {&w.beta, raw_beta_}, {&w.alpha, alpha_}};
    workspace_.project({inputs, w.alpha.w.rows ? size_t{4} : size_t{3}}, acts, n);
    convolve(il, state);
    workspace_.pool().run(n, [&](int64_t t, int) {
        float* row = channels_ + t * config_.n_channels();
        const int64_t d = config_.head_dim_k;
        const float length_scale = 1.0f / std::sqrt(static_cast<float>(d));
        for (int64_t h = 0; h < 2 * config_.n_head_k; ++h) {  // x / |x| is rms(x) / sqrt(d)
            const bool is_query = h < config_.n_head_k;
            kernels.rms_norm(row + h * d, nullptr, kLengthEps / static_cast<float>(d), row + h * d, d);
            kernels.scale(row + h * d, is_query ? 1.0f / static_cast<float>(d) : length_scale, d);
        }
        make_gates(w, t);
    });
    apply_rule(il, state);
    workspace_.pool().run(n, [&](int64_t t, int) {
        const int64_t d = config_.head_dim_v, rows = config_.value_rows();
        float* row = mixed_ + t * rows;
        for (int64_t h = 0; h < config_.n_head_v; ++h) kernels.rms_norm(row + h * d, w.norm, model_.config().norm_eps, row + h * d, d);
        kernels.glu(ops::GluKind::silu, z_ + t * rows, row, row, rows);
        out_acts_.quantize(kernels, act_mask(w.out), row, rows, t);
    });
    const Projection last{&w.out, out};
    workspace_.project({&last, 1}, out_acts_, n);
}

void DeltaNet::convolve(int64_t il, const SequenceState& state) {
    const int64_t n_channels = config_.n_channels();
    workspace_.pool().run((n_channels + kConvChannels - 1) / kConvChannels, [&](int64_t task, int) {
        ops::CausalConvJob job;
        job.stride = job.n_channels = n_channels;
        job.taps = model_.layer(il).state_mixer.taps;
        job.n_taps = config_.n_taps;
        job.channel_begin = task * kConvChannels;
        job.channel_end = std::min(n_channels, job.channel_begin + kConvChannels);
        job.silu = true;
        for (const SequenceState::Leg& leg : state.legs()) {
            job.x = channels_ + leg.begin * n_channels;
            job.n_tokens = leg.end - leg.begin;
            job.from = state.layer(il, leg.from);
            job.to = state.layer(il, leg.to);
            workspace_.kernels().causal_conv(job);
        }
    });
}

// beta and decay of one token's heads. Where one matrix makes both, each key head has its betas, then its alphas.
void DeltaNet::make_gates(const StateMixerWeights& w, int64_t t) {
    const int64_t n = config_.n_head_v, group = n / config_.n_head_k;
    const bool together = w.alpha.w.rows == 0;
    const float* raw = raw_beta_ + t * (together ? 2 * n : n);
    for (int64_t h = 0; h < n; ++h) {
        const int64_t at = h / group * 2 * group + h % group;
        const float alpha = together ? raw[at + group] : alpha_[t * n + h];
        beta_[t * n + h] = together ? raw[at] : raw[h];
        decay_[t * n + h] = ops::decay_of(w.rate[h], alpha + w.alpha_bias[h]);
    }
    workspace_.kernels().sigmoid(beta_ + t * n, n);
}

void DeltaNet::apply_rule(int64_t il, const SequenceState& state) {
    const Config& config = model_.config();
    const int64_t matrices = (conv_state_floats(config, config.layers[static_cast<size_t>(il)]) + 15) / 16 * 16;
    const int64_t matrix = ops::delta_state_floats(config_.head_dim_k, config_.head_dim_v);
    const int64_t n_channels = config_.n_channels(), rows = config_.value_rows();
    workspace_.pool().run(config_.n_head_v, [&](int64_t h, int) {
        const int64_t key_head = config.recipe->tiled_value_heads ? h % config_.n_head_k : h / (config_.n_head_v / config_.n_head_k);
        ops::DeltaRuleJob job;
        job.head_dim_k = config_.head_dim_k;
        job.head_dim_v = config_.head_dim_v;
        job.stride = n_channels;
        job.gate_stride = config_.n_head_v;
        job.out_stride = rows;
        for (const SequenceState::Leg& leg : state.legs()) {
            const float* row = channels_ + leg.begin * n_channels;
            const float* from = state.layer(il, leg.from);
            job.n_tokens = leg.end - leg.begin;
            job.q = row + key_head * config_.head_dim_k;
            job.k = row + config_.key_rows() + key_head * config_.head_dim_k;
            job.v = row + 2 * config_.key_rows() + h * config_.head_dim_v;
            job.beta = beta_ + leg.begin * config_.n_head_v + h;
            job.decay = decay_ + leg.begin * config_.n_head_v + h;
            job.out = mixed_ + leg.begin * rows + h * config_.head_dim_v;
            job.from = from ? from + matrices + h * matrix : nullptr;
            job.to = state.layer(il, leg.to) + matrices + h * matrix;
            workspace_.kernels().delta_rule(job);
        }
    });
}

}  // namespace moepic
