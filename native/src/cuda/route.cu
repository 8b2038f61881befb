// From router logits to the experts of a token and their weights: route_token (engine/router.cpp), then expert_scale.
//   logits [n][n_expert] f32, overwritten by scores    ids [n][k] ascending, weights [n][k]
//
// A block is one warp and has one token; scores and keys lie in shared memory. The best are taken one at a time, each by one reduction over
// the warp: k rounds of n_expert / 32 comparisons a lane. Sums go over the chosen in the order they were chosen, as the CPU's do. Kilobytes
// a token; a chain of some k hundred cycles, which is what matters, for every layer waits for it. Not measured.
#include "cuda/route.h"
#include "cuda/rows.cuh"

namespace moepic::device {
namespace {

constexpr float kInfinity = __builtin_inff();

// The values of model/recipe.h, which this room does not know.
enum class Scoring : int32_t { softmax = 1, sigmoid = 2, softmax_selected = 3, sparse_mixer = 255 };

__device__ int lane_of() {
    return static_cast<int>(threadIdx.x % 32);
}

// Kernels::softmax on n floats of shared memory.
__device__ void softmax(float* x, int64_t n) {
    float top = -kInfinity;
    for (int64_t i = lane_of(); i < n; i += 32) top = f_max(top, x[i]);
    for (int step = 16; step > 0; step /= 2) top = f_max(top, __shfl_xor_sync(kAllLanes, top, step));
    top = __shfl_sync(kAllLanes, top, 0);
    for (int64_t i = lane_of(); i < n; i += 32) x[i] = f_exp(x[i] - top);
    __syncwarp();
    const float sum = warp_row_sum(n, Add{}, [&](int64_t i) { return x[i]; });
    for (int64_t i = lane_of(); i < n; i += 32) x[i] = x[i] / sum;
    __syncwarp();
}

// The place of the largest of keys[0 .. n) whose `taken` is 0; of equals the lowest. -1: all are taken.
__device__ int largest_free(const float* keys, const int* taken, int64_t n) {
    float best = 0.0f;
    int at = -1;
    for (int64_t i = lane_of(); i < n; i += 32) {
        if (taken[i] == 0 && (at < 0 || keys[i] > best)) {
            best = keys[i];
            at = static_cast<int>(i);
        }
    }
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, best, step);
        const int other_at = __shfl_xor_sync(kAllLanes, at, step);
        if (other_at >= 0 && (at < 0 || other > best || (other == best && other_at < at))) {
            best = other;
            at = other_at;
        }
    }
    return at;
}

// Experts outside the best groups are taken before the choice begins. `sums`, `out`: [n_group].
__device__ void exclude_groups(const RouteJob& job, const float* keys, float* sums, int* out, int* taken) {
    const int64_t size = job.n_expert / job.n_group;
    for (int64_t g = lane_of(); g < job.n_group; g += 32) {
        float first = -kInfinity, second = -kInfinity;
        for (int64_t e = g * size; e < (g + 1) * size; ++e) {
            const float v = keys[e];
            if (v > first) {
                second = first;
                first = v;
            } else if (v > second) {
                second = v;
            }
        }
        sums[g] = size > 1 && !job.groups_by_best ? first + second : first;
        out[g] = 0;
    }
    __syncwarp();
    for (int64_t i = 0; i < job.n_group_used; ++i) {
        const int g = largest_free(sums, out, job.n_group);
        __syncwarp();
        if (lane_of() == 0) out[g] = 1;
        __syncwarp();
    }
    for (int64_t e = lane_of(); e < job.n_expert; e += 32) taken[e] = out[e / size] == 0;
    __syncwarp();
}

// Ids and weights as they were chosen, in shared memory, to the token's, ids ascending.
__device__ void write_sorted(const RouteJob& job, int64_t token, const int* ids, const float* weights) {
    for (int64_t j = lane_of(); j < job.k; j += 32) {
        int64_t at = token * job.k;
        for (int64_t other = 0; other < job.k; ++other) at += ids[other] < ids[j];
        job.ids[at] = ids[j];
        job.weights[at] = job.expert_scale ? weights[j] * job.expert_scale[ids[j]] : weights[j];
    }
}

// mix_sparsely of router.cpp. `near`: [n_expert].
__device__ void mix_sparsely(const RouteJob& job, const float* logits, const float* keys, int* taken, float* near, int* ids,
                             float* weights) {
    constexpr float kTwoJitters = 0.02f;
    for (int j = 0; j < 2; ++j) {
        const int best = largest_free(keys, taken, job.n_expert);
        const float top = logits[best];
        for (int64_t e = lane_of(); e < job.n_expert; e += 32) {
            const float size = fabsf(logits[e]) < top ? top : fabsf(logits[e]);
            near[e] = taken[e] != 0 || (top - logits[e]) / size > kTwoJitters ? -kInfinity : logits[e];
        }
        __syncwarp();
        softmax(near, job.n_expert);
        if (lane_of() == 0) {
            ids[j] = best;
            weights[j] = near[best];
            taken[best] = 1;
        }
        __syncwarp();
    }
}

// Shared memory: scores, keys and near [n_expert], weights [k], sums [n_group] f32; taken [n_expert], ids [k], out [n_group] int.
size_t shared_bytes(const RouteJob& job) {
    return static_cast<size_t>(4 * job.n_expert + 2 * job.k + 2 * job.n_group) * sizeof(float);
}

__global__ void route_kernel(RouteJob job) {
    float *const scores = shared_memory<float>(), *const keys = scores + job.n_expert, *const near = keys + job.n_expert;
    float *const weights = near + job.n_expert, *const sums = weights + job.k;
    int* const taken = reinterpret_cast<int*>(sums + job.n_group);
    int *const ids = taken + job.n_expert, *const out = ids + job.k;
    const int64_t token = blockIdx.x;
    const auto scoring = static_cast<Scoring>(job.scoring);
    float* const logits = job.logits + token * job.n_expert;

    for (int64_t e = lane_of(); e < job.n_expert; e += 32)
        scores[e] = scoring == Scoring::sigmoid ? over_logistic(1.0f, logits[e]) : logits[e];
    __syncwarp();
    if (scoring == Scoring::softmax) softmax(scores, job.n_expert);
    for (int64_t e = lane_of(); e < job.n_expert; e += 32) {
        const bool is_biased = job.selection_bias && scoring != Scoring::sparse_mixer;
        const float key = is_biased ? scores[e] + job.selection_bias[e] : scores[e];
        keys[e] = key == key ? key : -kInfinity;  // NaN loses
        taken[e] = 0;
        logits[e] = scores[e];
    }
    __syncwarp();
    if (scoring == Scoring::sparse_mixer) {
        mix_sparsely(job, scores, keys, taken, near, ids, weights);
        return write_sorted(job, token, ids, weights);
    }

    if (job.n_group_used < job.n_group) exclude_groups(job, keys, sums, out, taken);
    for (int64_t j = 0; j < job.k; ++j) {
        const int best = largest_free(keys, taken, job.n_expert);
        __syncwarp();
        if (lane_of() == 0) {
            ids[j] = best;
            weights[j] = scores[best];
            taken[best] = 1;
        }
        __syncwarp();
    }
    if (scoring == Scoring::softmax_selected) softmax(weights, job.k);
    float sum = 0.0f;
    for (int64_t j = 0; j < job.k; ++j) sum += weights[j];
    __syncwarp();
    // The floor is the smallest normal half.
    const float floored = sum < 6.103515625e-5f ? 6.103515625e-5f : sum;
    const float factor = (job.renormalise ? 1.0f / floored : 1.0f) * job.router_scale;
    for (int64_t j = lane_of(); j < job.k; j += 32) weights[j] *= factor;
    __syncwarp();
    write_sorted(job, token, ids, weights);
}

}  // namespace

int32_t route(const RouteJob& job, Stream stream) {
    return launch(route_kernel, dim3(static_cast<unsigned>(job.n)), dim3(32), shared_bytes(job), stream, job);
}

}  // namespace moepic::device
