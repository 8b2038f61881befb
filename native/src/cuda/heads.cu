// Queries, keys and values between their projections and attention: norms of heads or whole rows, rotation, scaling. HeadsJob and
// LatentHeadsJob (device/jobs.h) name the steps; the order is CpuSteps::heads's and latent_heads's.
//
// A warp takes a head through all its steps in shared memory, so it is read and written once: 8 bytes an element, kilobytes a token, bound
// by latency. In decode the heads of the one token are spread over blocks; where the norm is of the whole row, one block has them all,
// because the row must be summed before any of it is overwritten.
#include <algorithm>

#include "cuda/heads.h"
#include "cuda/quantize.cuh"
#include "cuda/rows.cuh"

namespace moepic::device {
namespace {

constexpr int kWarps = 8;

// By a warp: Kernels::rope on a head in shared memory, one pair a lane.
__device__ void rotate(float* head, const float* cos_sin, int64_t n_rot, ops::RopePairing pairing) {
    const int64_t pairs = n_rot / 2;
    const int64_t step = pairing == ops::RopePairing::norm ? 2 : 1;
    const int64_t apart = pairing == ops::RopePairing::norm ? 1 : pairs;
    for (int64_t j = lane_id(); j < pairs; j += 32) {
        const float c = cos_sin[2 * j], s = cos_sin[2 * j + 1];
        float* const first = head + j * step;
        const float a = first[0], b = first[apart];
        first[0] = __fmaf_rn(a, c, -(b * s));
        first[apart] = __fmaf_rn(a, s, b * c);
    }
    __syncwarp();
}

// By a warp: Kernels::rms_norm on a head in shared memory. weight null: 1.
__device__ void norm_head(float* head, const float* weight, float eps, int64_t n) {
    const float inverse = inverse_rms(warp_row_sum(n, AddSquare{}, [&](int64_t i) { return head[i]; }), n, eps);
    for (int64_t i = lane_id(); i < n; i += 32) head[i] = weight ? head[i] * inverse * weight[i] : head[i] * inverse;
    __syncwarp();
}

// One head of q or k, in shared memory, through the steps that both have.
__device__ void finish_head(const HeadsJob& job, float* head, const float* norm_weight, int64_t token) {
    const bool normed = job.head_norm;
    if (normed && !job.norm_after_rope) norm_head(head, norm_weight, job.eps, job.head_dim_k);
    if (job.rotates) rotate(head, job.angles + token * job.n_rot, job.n_rot, job.pairing);
    if (normed && job.norm_after_rope) norm_head(head, norm_weight, job.eps, job.head_dim_k);
}

__global__ void heads_kernel(HeadsJob job, int64_t head_floats) {
    float* const staged = shared_memory<float>();
    const int warp = static_cast<int>(threadIdx.x / 32), lane = lane_id();
    float* const head = staged + warp * head_floats;
    const int64_t t = blockIdx.x, dim = job.head_dim_k, q_rows = job.n_head * dim, k_rows = job.n_head_kv * dim;
    float *const q = job.q + t * q_rows, *const k = job.k + t * k_rows, *const v = job.v + t * job.n_head_kv * job.head_dim_v;
    // Where a query lies before its steps: in q, or before its gate.
    const float* const q_from = job.gated_q ? job.gated_q + t * 2 * q_rows : q;
    const int64_t q_apart = job.gated_q ? 2 * dim : dim;

    float q_inverse = 1.0f, k_inverse = 1.0f;
    if (job.whole_norm) {
        const auto q_element = [&](int64_t i) { return q_from[i / dim * q_apart + i % dim]; };
        const auto k_element = [&](int64_t i) { return k[i]; };
        q_inverse = inverse_rms(block_row_sum(q_rows, staged, AddSquare{}, q_element), q_rows, job.eps);
        k_inverse = inverse_rms(block_row_sum(k_rows, staged, AddSquare{}, k_element), k_rows, job.eps);
    }

    const int64_t first = static_cast<int64_t>(blockIdx.y) * kWarps + warp, apart = static_cast<int64_t>(gridDim.y) * kWarps;
    for (int64_t h = first; h < job.n_head; h += apart) {
        for (int64_t i = lane; i < dim; i += 32) {
            const float x = q_from[h * q_apart + i];
            head[i] = job.whole_norm ? x * q_inverse * job.q_norm[h * dim + i] : x;
        }
        __syncwarp();
        finish_head(job, head, job.q_norm, t);
        for (int64_t i = lane; i < dim; i += 32) q[h * dim + i] = job.q_scale ? head[i] * job.q_scale[t] : head[i];
        __syncwarp();
    }
    // A key and a value go together: the value may be the key as it was.
    for (int64_t h = first; h < job.n_head_kv; h += apart) {
        float *const key = k + h * dim, *const value = v + h * job.head_dim_v;
        if (job.copies_values || job.value_norm) {
            const float* const from = job.copies_values ? key : value;
            for (int64_t i = lane; i < job.head_dim_v; i += 32) head[i] = from[i];
            __syncwarp();
            if (job.value_norm) norm_head(head, nullptr, job.eps, job.head_dim_v);
            for (int64_t i = lane; i < job.head_dim_v; i += 32) value[i] = head[i];
            __syncwarp();
        }
        for (int64_t i = lane; i < dim; i += 32) head[i] = job.whole_norm ? key[i] * k_inverse * job.k_norm[h * dim + i] : key[i];
        __syncwarp();
        finish_head(job, head, job.k_norm, t);
        for (int64_t i = lane; i < dim; i += 32) key[i] = head[i];
        __syncwarp();
    }
}

__global__ void latent_heads_kernel(LatentHeadsJob job, int64_t head_floats) {
    const int warp = static_cast<int>(threadIdx.x / 32), lane = lane_id();
    float* const head = shared_memory<float>() + warp * head_floats;
    const int64_t t = blockIdx.x, raw_dim = job.plain + job.n_rot, dim = job.kv_rank + job.n_rot;
    const float* const angles = job.angles + t * job.n_rot;
    // Item n_head is the key: [latent | rest] of which the latent is normed and the rest rotated.
    for (int64_t h = static_cast<int64_t>(blockIdx.y) * kWarps + warp; h <= job.n_head; h += static_cast<int64_t>(gridDim.y) * kWarps) {
        if (h == job.n_head) {
            float* const key = job.k + t * dim;
            for (int64_t i = lane; i < dim; i += 32) head[i] = key[i];
            __syncwarp();
            norm_head(head, job.k_norm, job.eps, job.kv_rank);
            rotate(head + job.kv_rank, angles, job.n_rot, job.pairing);
            for (int64_t i = lane; i < dim; i += 32) key[i] = head[i];
        } else {
            const float* const raw = job.raw + (t * job.n_head + h) * raw_dim;
            float* const rotated = job.q + (t * job.n_head + h) * dim + job.kv_rank;
            for (int64_t i = lane; i < job.n_rot; i += 32) head[i] = raw[job.plain + i];
            __syncwarp();
            rotate(head, angles, job.n_rot, job.pairing);
            for (int64_t i = lane; i < job.n_rot; i += 32) rotated[i] = head[i];
            quantize_row(job.mask, raw, job.plain, job.plain_acts, t * job.n_head + h, 0, 1);
        }
        __syncwarp();
    }
}

unsigned blocks_for(int64_t n_items) {
    return static_cast<unsigned>((n_items + kWarps - 1) / kWarps);
}

}  // namespace

int32_t heads(const HeadsJob& job, Stream stream) {
    const int64_t head_floats = std::max(job.head_dim_k, job.head_dim_v);
    const size_t bytes = std::max(kStagedBytes, static_cast<size_t>(kWarps * head_floats) * sizeof(float));
    const dim3 grid(static_cast<unsigned>(job.n), job.whole_norm ? 1u : blocks_for(job.n_head));
    return launch(heads_kernel, grid, dim3(32 * kWarps), bytes, stream, job, head_floats);
}

int32_t latent_heads(const LatentHeadsJob& job, Stream stream) {
    const int64_t head_floats = job.kv_rank + job.n_rot;
    const dim3 grid(static_cast<unsigned>(job.n), blocks_for(job.n_head + 1));
    return launch(latent_heads_kernel, grid, dim3(32 * kWarps), static_cast<size_t>(kWarps * head_floats) * sizeof(float), stream, job,
                  head_floats);
}

}  // namespace moepic::device
