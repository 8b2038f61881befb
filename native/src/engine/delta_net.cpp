#include "engine/delta_net.h"

#include "model/mixers.h"

namespace moepic {
namespace {

// Added to the squared length of queries and keys; a constant of the architecture, not the norms' epsilon.
constexpr float kLengthEps = 1e-6f;

}  // namespace

ActMask DeltaNet::input_mask(const StateMixerWeights& w) noexcept {
    return act_mask(w.in) | act_mask(w.gate) | act_mask(w.beta) | act_mask(w.alpha);
}

DeltaNet::DeltaNet(const Config& config, Steps& steps, int64_t n_batch)
    : model_config_(config), config_(config.delta_net), steps_(steps), n_batch_(n_batch) {
    Carver size;
    place(size);
    memory_ = steps.reserve(size.used(), "delta net scratch");
    Carver carver(memory_.data());
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
    for (const LayerWeights& layer : steps_.weights().layers) out |= act_mask(layer.state_mixer.out);
    out_acts_.reserve(carver, out, config_.value_rows(), n_batch_);
}

void DeltaNet::run(int64_t il, const ActSet& acts, int64_t n, const SequenceState& state, const device::PassPlace* place, float* out) {
    const StateMixerWeights& w = steps_.layer(il).state_mixer;
    const int64_t rows = config_.value_rows();
    steps_.matmul({matmul_job(w.in, acts, channels_), matmul_job(w.gate, acts, z_), matmul_job(w.beta, acts, raw_beta_),
                   matmul_job(w.alpha, acts, alpha_)},
                  n);

    device::ConvJob conv;
    conv.x = channels_;
    conv.n_channels = config_.n_channels();
    conv.taps = w.taps;
    conv.n_taps = config_.n_taps;
    conv.silu = true;
    conv.states = state.slots(il, place);
    steps_.conv(conv);

    device::DeltaGatesJob gates;
    gates.n = n;
    gates.n_channels = config_.n_channels();
    gates.n_head_k = config_.n_head_k;
    gates.n_head_v = config_.n_head_v;
    gates.head_dim_k = config_.head_dim_k;
    gates.channels = channels_;
    gates.length_eps = kLengthEps;
    gates.raw_beta = raw_beta_;
    gates.alpha = w.alpha.w.rows ? alpha_ : nullptr;
    gates.rate = w.rate;
    gates.alpha_bias = w.alpha_bias;
    gates.beta = beta_;
    gates.decay = decay_;
    steps_.delta_gates(gates);

    device::DeltaRuleJob rule;
    rule.n_channels = config_.n_channels();
    rule.n_head_k = config_.n_head_k;
    rule.n_head_v = config_.n_head_v;
    rule.head_dim_k = config_.head_dim_k;
    rule.head_dim_v = config_.head_dim_v;
    rule.tiled_value_heads = model_config_.recipe->tiled_value_heads;
    rule.channels = channels_;
    rule.beta = beta_;
    rule.decay = decay_;
    rule.out = mixed_;
    rule.state_offset = matrices_offset(model_config_, model_config_.layers[static_cast<size_t>(il)]);
    rule.states = state.slots(il, place);
    steps_.delta_rule(rule);

    device::NormJob norm;
    norm.x = norm.y = mixed_;
    norm.weight = w.norm;
    norm.eps = model_config_.norm_eps;
    norm.n = n * config_.n_head_v;
    norm.cols = norm.stride = config_.head_dim_v;
    steps_.norm(norm);

    device::GluJob gate;
    gate.kind = ops::GluKind::silu;
    gate.gate = z_;
    gate.up = gate.out = mixed_;
    gate.gate_stride = gate.up_stride = gate.out_stride = gate.cols = rows;
    gate.n = n;
    gate.acts = out_acts_.acts();
    gate.mask = act_mask(w.out);
    steps_.glu(gate);
    steps_.matmul({matmul_job(w.out, out_acts_, out)}, n);
}

}  // namespace moepic
