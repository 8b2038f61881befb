#include "engine/short_conv.h"

#include <algorithm>

namespace moepic {
namespace {

// Channels gated and convolved by one task: some kilobytes per token.
constexpr int64_t kConvChannels = 256;

}  // namespace

ShortConv::ShortConv(const Model& model, Workspace& workspace, int64_t n_batch) : model_(model), workspace_(workspace), n_batch_(n_batch) {
    Carver size;
    place(size);
    region_ = Region(size.used(), "short convolution scratch");
    Carver carver(region_.data());
    place(carver);
}

void ShortConv::place(Carver& carver) {
    const Config& config = model_.config();
    inner_ = carver.take<float>(static_cast<size_t>(n_batch_ * 3 * config.n_embd));
    ActMask out = 0;
    for (int64_t il = 0; il < config.n_layer; ++il) {
        if (config.layers[static_cast<size_t>(il)].mixer == Mixer::short_conv) out |= act_mask(model_.layer(il).state_mixer.out);
    }
    out_acts_.reserve(carver, out, config.n_embd, n_batch_);
}

void ShortConv::run(int64_t il, const ActSet& acts, int64_t n, const SequenceState& state, float* out) {
    const StateMixerWeights& w = model_.layer(il).state_mixer;
    const ops::Kernels& kernels = workspace_.kernels();
    const int64_t n_embd = model_.config().n_embd, stride = 3 * n_embd;
    const Projection first{&w.in, inner_};
    workspace_.project({&first, 1}, acts, n);
    workspace_.pool().run((n_embd + kConvChannels - 1) / kConvChannels, [&](int64_t task, int) {
        ops::CausalConvJob job;
        job.stride = stride;
        job.taps = w.taps;
        job.n_taps = model_.config().n_conv_taps;
        job.n_channels = n_embd;
        job.channel_begin = task * kConvChannels;
        job.channel_end = std::min(n_embd, job.channel_begin + kConvChannels);
        const int64_t width = job.channel_end - job.channel_begin;
        const auto part = [&](int64_t t, int64_t which) { return inner_ + t * stride + which * n_embd + job.channel_begin; };
        for (int64_t t = 0; t < n; ++t) kernels.multiply(part(t, 2), part(t, 0), width);
        for (const SequenceState::Leg& leg : state.legs()) {
            job.x = inner_ + leg.begin * stride + 2 * n_embd;
            job.n_tokens = leg.end - leg.begin;
            job.from = state.layer(il, leg.from);
            job.to = state.layer(il, leg.to);
            kernels.causal_conv(job);
        }
        for (int64_t t = 0; t < n; ++t) kernels.multiply(part(t, 2), part(t, 1), width);
    });
    workspace_.pool().run(
        n, [&](int64_t t, int) { out_acts_.quantize(kernels, act_mask(w.out), inner_ + t * stride + 2 * n_embd, n_embd, t); });
    const Projection last{&w.out, out};
    workspace_.project({&last, 1}, out_acts_, n);
}

}  // namespace moepic
