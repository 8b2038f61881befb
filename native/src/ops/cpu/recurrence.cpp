// A short causal convolution per channel, and the gated delta rule of one head; formulas and shapes are with the jobs in ops/ops.h.
//
// Both walk tokens one after the other, and a token's arithmetic is the same whether it comes alone or in a prompt:
//   conv    y = the chain of fused multiply-adds over taps, the oldest first, from 0                          a lane is a channel
//   delta   r = the chain of fused multiply-adds over rows of S ascending, S[i] k[i], from 0                  a lane is a column of S
//           d = beta fma(-decay, r, v);  S[i] = fma(k[i], d, decay S[i]);  out = the chain over rows, S[i] q[i], from 0
// (S^T k of the decayed S is decay times that of the old one, which saves a pass over S.)
//
// Decode reads and writes S once per token (64 KiB for a head of 128 x 128, far beyond what a token brings): memory is the bound. Prefill
// keeps a block of columns in the first- or second-level cache for all tokens; then fused multiply-adds are the bound, 3 per weight of S.
#include "ops/cpu/recurrence.h"

#include "ops/cpu/math.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

// Columns of S at once, in vectors: as many chains as cover the latency of a fused multiply-add. Not part of the arithmetic.
#if MOEPIC_SIMD_AVX512
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif

// The first n lanes; n may be more than there are.
inline F16x load_up_to(const float* p, int64_t n) {
    return n >= kLanes ? f_load(p) : f_load_some(p, n, 0.0f);
}
inline void store_up_to(float* p, int64_t n, F16x a) {
    if (n >= kLanes) {
        f_store(p, a);
    } else {
        f_store_some(p, n, a);
    }
}

void conv_vector(const CausalConvJob& job, int64_t channel, int64_t n) {
    F16x taps[kMostTaps], window[kMostTaps];  // window: inputs from the oldest to this token's
    for (int64_t j = 0; j < job.n_taps; ++j) taps[j] = load_up_to(job.taps + j * job.n_channels + channel, n);
    for (int64_t j = 0; j + 1 < job.n_taps; ++j)
        window[j + 1] = job.from ? load_up_to(job.from + j * job.n_channels + channel, n) : f_set(0.0f);
    for (int64_t t = 0; t < job.n_tokens; ++t) {
        float* const x = job.x + t * job.stride + channel;
        for (int64_t j = 0; j + 1 < job.n_taps; ++j) window[j] = window[j + 1];
        window[job.n_taps - 1] = load_up_to(x, n);
        F16x y = f_set(0.0f);
        for (int64_t j = 0; j < job.n_taps; ++j) y = f_fma(taps[j], window[j], y);
        store_up_to(x, n, job.silu ? over_logistic(y, y) : y);
    }
    for (int64_t j = 0; j + 1 < job.n_taps; ++j) store_up_to(job.to + j * job.n_channels + channel, n, window[j + 1]);
}

// Columns [first, first + 16 W) of S.
template <int W>
void delta_columns(const DeltaRuleJob& job, int64_t first) {
    const int64_t stride = (job.head_dim_v + kLanes - 1) / kLanes * kLanes;
    const float* from = job.from ? job.from + first : nullptr;
    float* const to = job.to + first;
    for (int64_t t = 0; t < job.n_tokens; ++t) {
        const float *q = job.q + t * job.stride, *k = job.k + t * job.stride, *v = job.v + t * job.stride + first;
        const F16x decay = f_set(job.decay[t * job.gate_stride]), beta = f_set(job.beta[t * job.gate_stride]);
        F16x delta[W], out[W];
        for (int w = 0; w < W; ++w) delta[w] = out[w] = f_set(0.0f);
        if (from) {
            for (int64_t i = 0; i < job.head_dim_k; ++i) {
                const F16x key = f_set(k[i]);
                for (int w = 0; w < W; ++w) delta[w] = f_fma(f_load(from + i * stride + w * kLanes), key, delta[w]);
            }
        }
        for (int w = 0; w < W; ++w)
            delta[w] = beta * f_fma(negate(decay), delta[w], load_up_to(v + w * kLanes, job.head_dim_v - first - w * kLanes));
        for (int64_t i = 0; i < job.head_dim_k; ++i) {
            const F16x key = f_set(k[i]), query = f_set(q[i]);
            for (int w = 0; w < W; ++w) {
                const int64_t at = i * stride + w * kLanes;
                const F16x old = from ? decay * f_load(from + at) : f_set(0.0f);
                const F16x state = f_fma(key, delta[w], old);
                f_store(to + at, state);
                out[w] = f_fma(state, query, out[w]);
            }
        }
        float* const y = job.out + t * job.out_stride + first;
        for (int w = 0; w < W; ++w) store_up_to(y + w * kLanes, job.head_dim_v - first - w * kLanes, out[w]);
        from = to;
    }
}

}  // namespace

void causal_conv(const CausalConvJob& job) {
    for (int64_t c = job.channel_begin; c < job.channel_end; c += kLanes) conv_vector(job, c, job.channel_end - c);
}

void delta_rule(const DeltaRuleJob& job) {
    int64_t first = 0;
    for (; first + kWide * kLanes <= job.head_dim_v; first += kWide * kLanes) delta_columns<kWide>(job, first);
    for (; first + 4 * kLanes <= job.head_dim_v; first += 4 * kLanes) delta_columns<4>(job, first);
    for (; first < job.head_dim_v; first += kLanes) delta_columns<1>(job, first);
}

}  // namespace moepic::ops::MOEPIC_ISA
