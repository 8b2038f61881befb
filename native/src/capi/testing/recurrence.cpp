#include "capi/testing/recurrence.h"

#include <vector>

#include "capi/guard.h"
#include "capi/kernels_of.h"
#include "ops/decay.h"
#include "ops/ops.h"

namespace {

using moepic::Code;
using moepic::fail;
using moepic::guard;
using moepic::kernels_of;
namespace ops = moepic::ops;

}  // namespace

int moepic_test_causal_conv(int isa, float* x, int64_t n_tokens, const float* taps, int64_t n_taps, int64_t n_channels, const float* from,
                            float* to, int64_t channel_begin, int64_t channel_end, int silu) {
    return guard([&] {
        if (n_taps < 2 || n_taps > ops::kMostTaps) fail(Code::argument, "conv: ", n_taps, " taps, expected 2 to ", ops::kMostTaps);
        ops::CausalConvJob job;
        job.x = x;
        job.stride = job.n_channels = n_channels;
        job.n_tokens = n_tokens;
        job.taps = taps;
        job.n_taps = n_taps;
        job.from = from;
        job.to = to;
        job.channel_begin = channel_begin;
        job.channel_end = channel_end;
        job.silu = silu != 0;
        kernels_of(isa).causal_conv(job);
    });
}

int moepic_test_delta_rule(int isa, int64_t n_tokens, int64_t head_dim_k, int64_t head_dim_v, const float* q, const float* k,
                           const float* v, const float* decay, const float* beta, float* out, const float* from, float* to) {
    return guard([&] {
        // In the engine q, k and v of a token lie in one row; so they do here.
        const int64_t stride = 2 * head_dim_k + head_dim_v;
        std::vector<float> rows(static_cast<size_t>(n_tokens * stride));
        for (int64_t t = 0; t < n_tokens; ++t) {
            float* row = rows.data() + t * stride;
            for (int64_t i = 0; i < head_dim_k; ++i) {
                row[i] = q[t * head_dim_k + i];
                row[head_dim_k + i] = k[t * head_dim_k + i];
            }
            for (int64_t i = 0; i < head_dim_v; ++i) row[2 * head_dim_k + i] = v[t * head_dim_v + i];
        }
        ops::DeltaRuleJob job;
        job.n_tokens = n_tokens;
        job.head_dim_k = head_dim_k;
        job.head_dim_v = head_dim_v;
        job.q = rows.data();
        job.k = rows.data() + head_dim_k;
        job.v = rows.data() + 2 * head_dim_k;
        job.stride = stride;
        job.decay = decay;
        job.beta = beta;
        job.gate_stride = 1;
        job.out = out;
        job.out_stride = head_dim_v;
        job.from = from;
        job.to = to;
        kernels_of(isa).delta_rule(job);
    });
}

int moepic_test_decay(const float* rate, const float* x, float* out, int64_t n) {
    return guard([&] {
        for (int64_t i = 0; i < n; ++i) out[i] = ops::decay_of(rate[i], x[i]);
    });
}

int moepic_test_multiply(int isa, float* y, const float* x, int64_t n) {
    return guard([&] { kernels_of(isa).multiply(y, x, n); });
}
