#include "engine/cpu_steps.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "engine/norm.h"
#include "ops/decay.h"

namespace moepic {
namespace {

// Floats of a row-wise step that are worth a task: a microsecond or two. One token's step is then the caller's alone, without a barrier.
constexpr int64_t kRowFloats = 4096;
// The same of a step that does nothing but pass floats by.
constexpr int64_t kPartFloats = 65536;
// Tokens whose attention one task computes: enough to reuse a block of keys from the first-level cache.
constexpr int64_t kAttentionTokens = 32;
// Heads that one task computes where all read the same keys.
constexpr int64_t kSharingHeads = 8;
// Channels convolved by one task: some kilobytes per token.
constexpr int64_t kConvChannels = 256;

// Heads that share keys and values go together; where all of them do, some at a time, so that every thread has work.
int64_t heads_together(const ops::KvView& kv, int64_t n_head) {
    return kv.n_head_kv == 1 ? std::min(n_head, kSharingHeads) : n_head / kv.n_head_kv;
}

// What the chunks of one token's attention leave.
size_t part_bytes(const ops::KvView& kv, int64_t n_head, int64_t n_chunks) {
    return static_cast<size_t>(n_head * n_chunks * ops::attention_part_floats(kv.head_dim_v)) * sizeof(float);
}

std::span<const device::StateLeg> legs_of(const device::StateSlots& states) {
    return {states.place->legs, static_cast<size_t>(states.n_legs)};
}

float* state_in(const device::StateSlots& states, int32_t slot) {
    return slot < 0 ? nullptr : states.first + slot * states.slot_floats;
}

}  // namespace

Memory CpuSteps::reserve(size_t bytes, const char* what) {
    auto region = std::make_shared<Region>(bytes, what);
    std::byte* data = region->data();
    return {std::move(region), data, bytes};
}

template <class Row>
void CpuSteps::each_row(int64_t n, int64_t cols, Row row) {
    const int64_t rows = std::max<int64_t>(1, kRowFloats / cols);
    workspace_.pool().run((n + rows - 1) / rows, [&](int64_t task, int) {
        for (int64_t r = task * rows; r < std::min(n, (task + 1) * rows); ++r) row(r);
    });
}

template <class Part>
void CpuSteps::each_part(int64_t n, Part part) {
    workspace_.pool().run((n + kPartFloats - 1) / kPartFloats,
                          [&](int64_t task, int) { part(task * kPartFloats, std::min(kPartFloats, n - task * kPartFloats)); });
}

void CpuSteps::clear(float* x, int64_t n) {
    each_part(n, [&](int64_t at, int64_t count) { std::fill_n(x + at, count, 0.0f); });
}

void CpuSteps::norm(const device::NormJob& job) {
    const Norm norm{job.weight, job.bias, job.factor};
    each_row(job.n, job.cols, [&](int64_t r) {
        float* y = job.y + r * job.stride;
        norm.apply(workspace_.kernels(), job.eps, job.x + r * job.stride, y, job.cols);
        quantize_row(workspace_.kernels(), job.mask, y, job.cols, job.acts, r);
    });
}

void CpuSteps::quantize(ActMask mask, const float* x, int64_t cols, int64_t n, const Acts& acts) {
    each_row(n, cols, [&](int64_t r) { quantize_row(workspace_.kernels(), mask, x + r * cols, cols, acts, r); });
}

void CpuSteps::heads(const device::HeadsJob& job) {
    const ops::Kernels& kernels = workspace_.kernels();
    const int64_t d = job.head_dim_k, q_rows = job.n_head * d, k_rows = job.n_head_kv * d, v_rows = job.n_head_kv * job.head_dim_v;
    const auto finish = [&](float* row, int64_t n_head, const float* weight, const float* angles) {
        if (job.whole_norm) kernels.rms_norm(row, weight, job.eps, row, n_head * d);
        for (float* head = row; head < row + n_head * d; head += d) {
            if (job.head_norm && !job.norm_after_rope) kernels.rms_norm(head, weight, job.eps, head, d);
            if (job.rotates) kernels.rope(head, angles, job.n_rot, job.pairing);
            if (job.head_norm && job.norm_after_rope) kernels.rms_norm(head, weight, job.eps, head, d);
        }
    };
    workspace_.pool().run(job.n, [&](int64_t t, int) {
        float *q = job.q + t * q_rows, *k = job.k + t * k_rows, *v = job.v + t * v_rows;
        for (int64_t h = 0; job.gated_q && h < job.n_head; ++h) std::copy_n(job.gated_q + 2 * (t * q_rows + h * d), d, q + h * d);
        if (job.copies_values) std::copy_n(k, k_rows, v);
        for (float* head = v; job.value_norm && head < v + v_rows; head += job.head_dim_v)
            kernels.rms_norm(head, nullptr, job.eps, head, job.head_dim_v);
        const float* angles = job.angles + t * job.n_rot;
        finish(q, job.n_head, job.q_norm, angles);
        finish(k, job.n_head_kv, job.k_norm, angles);
        if (job.q_scale) kernels.scale(q, job.q_scale[t], q_rows);
    });
}

void CpuSteps::latent_heads(const device::LatentHeadsJob& job) {
    const ops::Kernels& kernels = workspace_.kernels();
    const int64_t raw_head = job.plain + job.n_rot, head_dim = job.kv_rank + job.n_rot;
    workspace_.pool().run(job.n, [&](int64_t t, int) {
        const float* angles = job.angles + t * job.n_rot;
        float* key = job.k + t * head_dim;
        kernels.rms_norm(key, job.k_norm, job.eps, key, job.kv_rank);
        kernels.rope(key + job.kv_rank, angles, job.n_rot, job.pairing);
        for (int64_t i = t * job.n_head; i < (t + 1) * job.n_head; ++i) {
            const float* raw = job.raw + i * raw_head;
            float* rotated = job.q + i * head_dim + job.kv_rank;
            std::copy_n(raw + job.plain, job.n_rot, rotated);
            kernels.rope(rotated, angles, job.n_rot, job.pairing);
            quantize_row(kernels, job.mask, raw, job.plain, job.plain_acts, i);
        }
    });
}

void CpuSteps::kv_store(const device::KvStoreJob& job) {
    // Positions of one block share cache lines, so a task stores whole blocks.
    const int64_t first_pos = job.place->first_pos, end_pos = first_pos + job.n, first_block = first_pos / ops::kKvBlock;
    workspace_.pool().run((end_pos - 1) / ops::kKvBlock - first_block + 1, [&](int64_t b, int) {
        const int64_t begin = std::max(first_pos, (first_block + b) * ops::kKvBlock),
                      end = std::min(end_pos, (first_block + b + 1) * ops::kKvBlock);
        for (int64_t pos = begin; pos < end; ++pos) {
            const int64_t t = pos - first_pos;
            workspace_.kernels().kv_store(job.kv, pos, job.k + t * job.k_stride, job.v + t * job.v_stride);
        }
    });
}

// One token has a task per group of heads, which leaves threads without work: then every chunk is a task.
size_t CpuSteps::attention_scratch(const ops::KvView& kv, int64_t, int64_t n_head) const {
    const int64_t group = heads_together(kv, n_head);
    if ((n_head + group - 1) / group >= workspace_.pool().size()) return 0;
    // Positions that are held may begin and end inside a chunk.
    return part_bytes(kv, n_head, (kv.capacity + ops::kKvChunk - 1) / ops::kKvChunk + 1);
}

void CpuSteps::attention(const device::AttentionJob& job) {
    const int64_t group = heads_together(job.kv, job.n_head), groups = (job.n_head + group - 1) / group;
    const int64_t token_blocks = (job.n + kAttentionTokens - 1) / kAttentionTokens;
    ops::AttentionJob whole;
    whole.kv = job.kv;
    whole.q = job.q;
    whole.out = job.out;
    whole.n_head = job.n_head;
    whole.first_pos = job.place->first_pos;
    whole.scale = job.scale;
    whole.window = job.window;
    whole.chunked = job.chunked;
    whole.sinks = job.sinks;
    const auto task_of = [&](int64_t block, int64_t which, int thread) {
        ops::AttentionJob part = whole;
        part.token_begin = block * kAttentionTokens;
        part.token_end = std::min(part.token_begin + kAttentionTokens, job.n);
        part.head_begin = which * group;
        part.head_end = std::min(part.head_begin + group, job.n_head);
        part.scratch = workspace_.scratch(thread);
        return part;
    };

    const ops::Kernels& kernels = workspace_.kernels();
    whole.first_chunk = ops::first_seen(whole.first_pos, job.window, job.chunked) / ops::kKvChunk;
    whole.n_chunks = whole.first_pos / ops::kKvChunk - whole.first_chunk + 1;
    if (job.n == 1 && groups < workspace_.pool().size() && whole.n_chunks > 1 &&
        part_bytes(job.kv, job.n_head, whole.n_chunks) <= job.scratch_bytes) {
        whole.parts = reinterpret_cast<float*>(job.scratch);
        workspace_.pool().run(groups * whole.n_chunks, [&](int64_t task, int thread) {
            ops::AttentionJob part = task_of(0, task % groups, thread);
            part.chunk = whole.first_chunk + task / groups;
            kernels.attention(part);
        });
        workspace_.pool().run(groups, [&](int64_t task, int thread) { kernels.attention_join(task_of(0, task, thread)); });
        return;
    }
    workspace_.pool().run(token_blocks * groups, [&](int64_t task, int thread) {
        // Later tokens see more positions: start with the longest rows so that the threads end together.
        kernels.attention(task_of(token_blocks - 1 - task / groups, task % groups, thread));
    });
}

void CpuSteps::glu(const device::GluJob& job) {
    const ops::Kernels& kernels = workspace_.kernels();
    each_row(job.n, job.cols, [&](int64_t r) {
        float* out = job.out + r * job.out_stride;
        kernels.glu(job.kind, job.gate + r * job.gate_stride, job.up + r * job.up_stride, out, job.cols);
        quantize_row(kernels, job.mask, out, job.cols, job.acts, r);
    });
}

void CpuSteps::scale(float* y, float a, int64_t n) {
    each_part(n, [&](int64_t at, int64_t count) { workspace_.kernels().scale(y + at, a, count); });
}

void CpuSteps::scale_add(float* y, float a, const float* x, int64_t n) {
    each_part(n, [&](int64_t at, int64_t count) { workspace_.kernels().scale_add(y + at, a, x + at, count); });
}

void CpuSteps::add(float* y, const float* x, int64_t n) {
    each_part(n, [&](int64_t at, int64_t count) { workspace_.kernels().add(y + at, x + at, count); });
}

void CpuSteps::multiply(float* y, const float* x, int64_t n) {
    each_part(n, [&](int64_t at, int64_t count) { workspace_.kernels().multiply(y + at, x + at, count); });
}

void CpuSteps::conv(const device::ConvJob& job) {
    workspace_.pool().run((job.n_channels + kConvChannels - 1) / kConvChannels, [&](int64_t task, int) {
        ops::CausalConvJob part;
        part.stride = part.n_channels = job.n_channels;
        part.taps = job.taps;
        part.n_taps = job.n_taps;
        part.channel_begin = task * kConvChannels;
        part.channel_end = std::min(job.n_channels, part.channel_begin + kConvChannels);
        part.silu = job.silu;
        for (const device::StateLeg& leg : legs_of(job.states)) {
            part.x = job.x + leg.begin * job.n_channels;
            part.n_tokens = leg.end - leg.begin;
            part.from = state_in(job.states, leg.from);
            part.to = state_in(job.states, leg.to);
            workspace_.kernels().causal_conv(part);
        }
    });
}

void CpuSteps::delta_gates(const device::DeltaGatesJob& job) {
    const ops::Kernels& kernels = workspace_.kernels();
    const int64_t d = job.head_dim_k, n_head = job.n_head_v, group = n_head / job.n_head_k;
    const float length_scale = 1.0f / std::sqrt(static_cast<float>(d));
    workspace_.pool().run(job.n, [&](int64_t t, int) {
        float* row = job.channels + t * job.n_channels;
        for (int64_t h = 0; h < 2 * job.n_head_k; ++h) {  // x / |x| is rms(x) / sqrt(d)
            const bool is_query = h < job.n_head_k;
            kernels.rms_norm(row + h * d, nullptr, job.length_eps / static_cast<float>(d), row + h * d, d);
            kernels.scale(row + h * d, is_query ? 1.0f / static_cast<float>(d) : length_scale, d);
        }
        // Where one matrix makes both, each key head has its betas, then its alphas.
        const bool together = job.alpha == nullptr;
        const float* raw = job.raw_beta + t * (together ? 2 * n_head : n_head);
        for (int64_t h = 0; h < n_head; ++h) {
            const int64_t at = h / group * 2 * group + h % group;
            const float alpha = together ? raw[at + group] : job.alpha[t * n_head + h];
            job.beta[t * n_head + h] = together ? raw[at] : raw[h];
            job.decay[t * n_head + h] = ops::decay_of(job.rate[h], alpha + job.alpha_bias[h]);
        }
        kernels.sigmoid(job.beta + t * n_head, n_head);
    });
}

void CpuSteps::delta_rule(const device::DeltaRuleJob& job) {
    const int64_t matrix = ops::delta_state_floats(job.head_dim_k, job.head_dim_v);
    const int64_t key_rows = job.n_head_k * job.head_dim_k, rows = job.n_head_v * job.head_dim_v;
    workspace_.pool().run(job.n_head_v, [&](int64_t h, int) {
        const int64_t key_head = job.tiled_value_heads ? h % job.n_head_k : h / (job.n_head_v / job.n_head_k);
        ops::DeltaRuleJob part;
        part.head_dim_k = job.head_dim_k;
        part.head_dim_v = job.head_dim_v;
        part.stride = job.n_channels;
        part.gate_stride = job.n_head_v;
        part.out_stride = rows;
        for (const device::StateLeg& leg : legs_of(job.states)) {
            const float* row = job.channels + leg.begin * job.n_channels;
            part.n_tokens = leg.end - leg.begin;
            part.q = row + key_head * job.head_dim_k;
            part.k = row + key_rows + key_head * job.head_dim_k;
            part.v = row + 2 * key_rows + h * job.head_dim_v;
            part.beta = job.beta + leg.begin * job.n_head_v + h;
            part.decay = job.decay + leg.begin * job.n_head_v + h;
            part.out = job.out + leg.begin * rows + h * job.head_dim_v;
            const float* const from = state_in(job.states, leg.from);
            part.from = from ? from + job.state_offset + h * matrix : nullptr;
            part.to = state_in(job.states, leg.to) + job.state_offset + h * matrix;
            workspace_.kernels().delta_rule(part);
        }
    });
}

}  // namespace moepic
