// The gated delta net between its projections (engine/delta_net.cpp): convolution, lengths and gates, the rule. Jobs are in device/jobs.h,
// formulas in ops/ops.h, the order of operations in ops/cpu/recurrence.cpp. Tokens go one after the other, as the contract has it; what is
// parallel is channels, heads and columns of the state.
//
//   conv         a thread is a channel, its taps and inputs in registers; 8 tokens are loaded ahead. Moves 8 bytes per token and channel.
//   delta_gates  a warp is a head of q or k, or 32 gates. A few kilobytes a token.
//   delta_rule   a warp is a block and has 32 columns of one head's state, which stay in shared memory (16 KiB for 128 rows) from the first
//                token to the last. Decode reads and writes the state once: 64 KiB for a head of 128 x 128, and memory is the bound; a
//                model with 32 heads gives 128 blocks. Prefill is bound by the two chains of head_dim_k multiply-adds a token. Not
//                measured.
#include <cmath>

#include "cuda/recurrence.h"
#include "cuda/rows.cuh"
#include "ops/decay.h"

namespace moepic::device {
namespace {

constexpr int kConvThreads = 128;
constexpr int kTaps = static_cast<int>(ops::kMostTaps);
constexpr int kAhead = 8;  // tokens

// Tokens of a leg, and the states it leads from (null: zeros) and to.
struct Leg {
    __device__ Leg(const StateSlots& states, int which) {
        const StateLeg leg = states.place->legs[which];
        begin = leg.begin;
        end = leg.end;
        from = leg.from < 0 ? nullptr : states.first + leg.from * states.slot_floats;
        to = states.first + leg.to * states.slot_floats;
    }
    int64_t begin, end;
    const float* from;
    float* to;
};

// The oldest taps of kTaps may be missing; loops have a fixed length so that taps and window are registers.
__global__ void conv_kernel(ConvJob job, int which) {
    const Leg leg(job.states, which);
    const int64_t channel = static_cast<int64_t>(blockIdx.x) * kConvThreads + threadIdx.x, stride = job.n_channels;
    if (channel >= job.n_channels) return;
    const int missing = kTaps - static_cast<int>(job.n_taps);
    float taps[kTaps], window[kTaps];  // window: inputs from the oldest to this token's
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
        taps[j] = j < missing ? 0.0f : job.taps[(j - missing) * stride + channel];
        window[j] = j <= missing || !leg.from ? 0.0f : leg.from[(j - missing - 1) * stride + channel];
    }
    for (int64_t begin = leg.begin; begin < leg.end; begin += kAhead) {
        float x[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) x[i] = begin + i < leg.end ? job.x[(begin + i) * stride + channel] : 0.0f;
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            if (begin + i >= leg.end) break;
#pragma unroll
            for (int j = 0; j + 1 < kTaps; ++j) window[j] = window[j + 1];
            window[kTaps - 1] = x[i];
            float y = 0.0f;
#pragma unroll
            for (int j = 0; j < kTaps; ++j) {
                if (j >= missing) y = __fmaf_rn(taps[j], window[j], y);
            }
            job.x[(begin + i) * stride + channel] = job.silu ? over_logistic(y, y) : y;
        }
    }
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
        if (j > missing) leg.to[(j - missing - 1) * stride + channel] = window[j];
    }
}

constexpr int kGateWarps = 8;

struct GateScales {
    float eps, query, key;  // of lengths: epsilon of the mean, and what a row of mean 1 is multiplied by
};

__global__ void gates_kernel(DeltaGatesJob job, GateScales scales) {
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(blockIdx.y * kGateWarps + threadIdx.x / 32);
    const int64_t t = blockIdx.x, dim = job.head_dim_k, n = job.n_head_v;
    const int64_t n_lengths = 2 * job.n_head_k, n_items = n_lengths + (n + 31) / 32;
    for (int64_t item = warp; item < n_items; item += gridDim.y * kGateWarps) {
        if (item < n_lengths) {  // x / |x| is rms(x) / sqrt(dim)
            float* const x = job.channels + t * job.n_channels + item * dim;
            const float inverse = inverse_rms(warp_row_sum(dim, AddSquare{}, [&](int64_t i) { return x[i]; }), dim, scales.eps);
            const float length = item < job.n_head_k ? scales.query : scales.key;
            for (int64_t i = lane; i < dim; i += 32) x[i] = x[i] * inverse * length;
            continue;
        }
        const int64_t h = (item - n_lengths) * 32 + lane;
        if (h >= n) continue;
        // Where one matrix makes both, each key head has its betas, then its alphas.
        const int64_t group = n / job.n_head_k, at = h / group * 2 * group + h % group;
        const float raw = job.alpha ? job.raw_beta[t * n + h] : job.raw_beta[t * 2 * n + at];
        const float alpha = job.alpha ? job.alpha[t * n + h] : job.raw_beta[t * 2 * n + at + group];
        job.beta[t * n + h] = over_logistic(1.0f, raw);
        job.decay[t * n + h] = ops::decay_of(job.rate[h], alpha + job.alpha_bias[h]);
    }
}

constexpr int kColumns = 32;

// Grid: (value heads, columns / 32).
__global__ void rule_kernel(DeltaRuleJob job, int which, int64_t state_stride) {
    const Leg leg(job.states, which);
    const int64_t rows = job.head_dim_k, h = blockIdx.x;
    const int64_t column = static_cast<int64_t>(blockIdx.y) * kColumns + threadIdx.x;
    const bool is_stored = column < state_stride, is_real = column < job.head_dim_v;  // padding of the state stays zero
    float* const state = shared_memory<float>() + threadIdx.x;                        // [rows][kColumns]
    float *const k = shared_memory<float>() + rows * kColumns, *const q = k + rows;
    const int64_t key_head = job.tiled_value_heads ? h % job.n_head_k : h / (job.n_head_v / job.n_head_k);
    const int64_t key_rows = job.n_head_k * rows, matrix = job.state_offset + h * rows * state_stride + column;

    bool is_zero = leg.from == nullptr;
#pragma unroll 8
    for (int64_t i = 0; i < rows; ++i) state[i * kColumns] = is_zero || !is_stored ? 0.0f : leg.from[matrix + i * state_stride];
    for (int64_t t = leg.begin; t < leg.end; ++t, is_zero = false) {
        const float* const row = job.channels + t * job.n_channels;
        __syncwarp();
        for (int64_t i = threadIdx.x; i < rows; i += kColumns) {
            q[i] = row[key_head * rows + i];
            k[i] = row[key_rows + key_head * rows + i];
        }
        __syncwarp();
        const float v = is_real ? row[2 * key_rows + h * job.head_dim_v + column] : 0.0f;
        const float decay = job.decay[t * job.n_head_v + h], beta = job.beta[t * job.n_head_v + h];
        float delta = 0.0f, out = 0.0f;
        if (!is_zero) {
#pragma unroll 8
            for (int64_t i = 0; i < rows; ++i) delta = __fmaf_rn(state[i * kColumns], k[i], delta);
        }
        delta = beta * __fmaf_rn(-decay, delta, v);
#pragma unroll 8
        for (int64_t i = 0; i < rows; ++i) {
            const float old = is_zero ? 0.0f : decay * state[i * kColumns];
            const float now = __fmaf_rn(k[i], delta, old);
            state[i * kColumns] = now;
            out = __fmaf_rn(now, q[i], out);
        }
        if (is_real) job.out[(t * job.n_head_v + h) * job.head_dim_v + column] = out;
    }
    if (!is_stored) return;
    for (int64_t i = 0; i < rows; ++i) leg.to[matrix + i * state_stride] = state[i * kColumns];
}

// Legs follow each other: the second may begin where the first ends. Two are rare, so each is a launch.
template <class Launch>
int32_t each_leg(const StateSlots& states, Launch launch_one) {
    for (int which = 0; which < states.n_legs; ++which) {
        if (const int32_t code = launch_one(which); code != kOk) return code;
    }
    return kOk;
}

}  // namespace

int32_t conv(const ConvJob& job, Stream stream) {
    if (job.n_taps < 2 || job.n_taps > kTaps) return refuse(kUnsupported, "convolutions have 2 to 8 taps");
    const auto blocks = static_cast<unsigned>((job.n_channels + kConvThreads - 1) / kConvThreads);
    return each_leg(job.states, [&](int which) { return launch(conv_kernel, dim3(blocks), dim3(kConvThreads), 0, stream, job, which); });
}

int32_t delta_gates(const DeltaGatesJob& job, Stream stream) {
    const auto dim = static_cast<float>(job.head_dim_k);
    const GateScales scales{job.length_eps / dim, 1.0f / dim, 1.0f / std::sqrt(dim)};
    const int64_t items = 2 * job.n_head_k + (job.n_head_v + 31) / 32;
    const dim3 grid(static_cast<unsigned>(job.n), static_cast<unsigned>((items + kGateWarps - 1) / kGateWarps));
    return launch(gates_kernel, grid, dim3(32 * kGateWarps), 0, stream, job, scales);
}

int32_t delta_rule(const DeltaRuleJob& job, Stream stream) {
    const int64_t stride = ops::delta_state_floats(1, job.head_dim_v);
    const dim3 grid(static_cast<unsigned>(job.n_head_v), static_cast<unsigned>((stride + kColumns - 1) / kColumns));
    const size_t bytes = static_cast<size_t>(job.head_dim_k * (kColumns + 2)) * sizeof(float);
    return each_leg(job.states, [&](int which) { return launch(rule_kernel, grid, dim3(kColumns), bytes, stream, job, which, stride); });
}

}  // namespace moepic::device
