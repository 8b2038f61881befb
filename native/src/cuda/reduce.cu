// x[t] += the token's experts: CpuFeedForward::reduce_row with a thread per column. The order of its additions is the contract:
//
//   routed   of each entry: partials of its granules, ascending, + bias of down; sum = fma(weight, that, sum) over entries, ascending
//   shared   the same with its weight, into the same sum, or where the residuals differ into one of its own
//   x        x = fma(residual_scale, sum, x)
//
// Reads n_granules rows of partials per entry (decode: 8 entries of 3 granules of 8 KB) and x: some 200 KB a token, out of L2.
#include "cuda/experts.h"
#include "cuda/simt.h"

namespace moepic::device {
namespace {

constexpr int kThreads = 128;

// Partials of n rows, `step` floats apart, in order.
__device__ inline float sum_rows(const float* y, const int32_t* rows, int64_t first, int64_t n, int64_t n_embd) {
    float sum = 0.0f;
    for (int64_t g = 0; g < n; ++g) {
        const float v = y[(rows ? rows[first + g] : first + g) * n_embd];
        sum = g == 0 ? v : sum + v;
    }
    return sum;
}

__global__ void __launch_bounds__(kThreads) reduce_kernel(ReduceJob job) {
    const int64_t t = blockIdx.y, column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (column >= job.n_embd) return;
    const int32_t* entries = job.token_entry + t * (job.k + 1);
    float* x = job.x + t * job.n_embd + column;
    float* shared_x = job.shared_x + t * job.n_embd + column;
    float sum = 0.0f;
    for (int64_t j = 0; j < job.k; ++j) {
        float expert = sum_rows(job.partials + column, job.rows, entries[j] * job.n_granules, job.n_granules, job.n_embd);
        if (job.down_bias) expert += job.down_bias[job.ids[t * job.k + j] * job.n_embd + column];
        sum = __fmaf_rn(job.weights ? job.weights[t * job.k + j] : 1.0f, expert, sum);
    }
    if (job.k > 0 && shared_x != x) {
        *x = __fmaf_rn(job.residual_scale, sum, *x);
        sum = 0.0f;
    }
    if (job.shared_granules > 0) {
        const int64_t first = (entries[job.k] - job.first_shared) * job.shared_granules;
        const float expert = sum_rows(job.shared_partials + column, nullptr, first, job.shared_granules, job.n_embd);
        sum = __fmaf_rn(job.shared_weight ? job.shared_weight[t] : 1.0f, expert, sum);
    }
    *shared_x = __fmaf_rn(job.residual_scale, sum, *shared_x);
}

}  // namespace

int32_t reduce(const ReduceJob& job, Stream stream) {
    const dim3 grid(static_cast<unsigned>((job.n_embd + kThreads - 1) / kThreads), static_cast<unsigned>(job.n));
    return launch(reduce_kernel, grid, dim3(kThreads), 0, stream, job);
}

}  // namespace moepic::device
