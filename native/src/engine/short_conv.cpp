#include "engine/short_conv.h"

namespace moepic {

ShortConv::ShortConv(const Config& config, Steps& steps, int64_t n_batch) : config_(config), steps_(steps), n_batch_(n_batch) {
    Carver size;
    place(size);
    memory_ = steps.reserve(size.used(), "short convolution scratch");
    Carver carver(memory_.data());
    place(carver);
}

void ShortConv::place(Carver& carver) {
    for (float** part : {&b_, &c_, &x_}) *part = carver.take<float>(static_cast<size_t>(n_batch_ * config_.n_embd));
    ActMask out = 0;
    for (const LayerWeights& layer : steps_.weights().layers) out |= act_mask(layer.state_mixer.out);
    out_acts_.reserve(carver, out, config_.n_embd, n_batch_);
}

void ShortConv::run(int64_t il, const ActSet& acts, int64_t n, const SequenceState& state, const device::PassPlace* place, float* out) {
    const StateMixerWeights& w = steps_.layer(il).state_mixer;
    const int64_t n_embd = config_.n_embd;
    // The parts of W_in are whole tiles (config.cpp sees to it), one after the other.
    Linear part = w.in;
    part.w.rows = n_embd;
    const auto next = [&](float* y) {
        const device::MatmulJob job = matmul_job(part, acts, y);
        part.w.data += static_cast<size_t>(n_embd) * row_bytes(part.w.type, part.w.cols);
        return job;
    };
    steps_.matmul({next(b_), next(c_), next(x_)}, n);
    steps_.multiply(x_, b_, n * n_embd);
    device::ConvJob conv;
    conv.x = x_;
    conv.n_channels = n_embd;
    conv.taps = w.taps;
    conv.n_taps = config_.n_conv_taps;
    conv.states = state.slots(il, place);
    steps_.conv(conv);
    steps_.multiply(x_, c_, n * n_embd);
    steps_.quantize(act_mask(w.out), x_, n_embd, n, out_acts_.acts());
    steps_.matmul({matmul_job(w.out, out_acts_, out)}, n);
}

}  // namespace moepic
