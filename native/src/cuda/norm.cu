// y = x / sqrt(mean(x^2) + eps) * weight * factor, or LayerNorm where there is a bias, and y as activations. Kernels::rms_norm, layer_norm,
// scale and quantize_act, one after the other, of each row.
//   x, y [n][stride] f32, `cols` of them used; weight, bias [cols]
//
// One block per row, of at most 8 elements a thread for the rows of heads, so that decode's single row is fetched by 256 threads and the
// thousand short rows of a delta net take a warp each. Moves 8 bytes an element and what the activations take; a model's width is
// kilobytes, so it is bound by latency: for each of the 16 partials, cols / 16 multiply-adds one after the other. Not measured.
#include <algorithm>

#include "cuda/norm.h"
#include "cuda/quantize.cuh"
#include "cuda/rows.cuh"

namespace moepic::device {
namespace {

__global__ void norm_kernel(NormJob job) {
    float* const staged = shared_memory<float>();
    const int64_t row = blockIdx.x;
    const float* const x = job.x + row * job.stride;
    float* const y = job.y + row * job.stride;
    const auto element = [&](int64_t i) { return x[i]; };
    float centre = 0.0f, squares;
    if (job.bias) {
        centre = block_row_sum(job.cols, staged, Add{}, element) / static_cast<float>(job.cols);
        squares = block_row_sum(job.cols, staged, AddSquareFrom{centre}, element);
    } else {
        squares = block_row_sum(job.cols, staged, AddSquare{}, element);
    }
    const float inverse = inverse_rms(squares, job.cols, job.eps);
    for (int64_t i = threadIdx.x; i < job.cols; i += blockDim.x) {
        float v = x[i];
        if (job.bias) v = v - centre;
        v = v * inverse;
        if (job.weight) v = v * job.weight[i];
        if (job.bias) v = v + job.bias[i];
        if (job.factor != 1.0f) v = v * job.factor;
        y[i] = v;
    }
    if (job.mask == 0) return;
    __syncthreads();
    quantize_row(job.mask, y, job.cols, job.acts, row, static_cast<int>(threadIdx.x / 32), static_cast<int>(blockDim.x / 32));
}

}  // namespace

int32_t norm(const NormJob& job, Stream stream) {
    const auto threads = static_cast<unsigned>(std::clamp<int64_t>((job.cols / 8 + 31) / 32 * 32, 32, kRowThreads));
    const size_t staged = static_cast<size_t>(std::clamp<int64_t>(job.cols, 1, kStagedFloats)) * sizeof(float);
    return launch(norm_kernel, dim3(static_cast<unsigned>(job.n)), dim3(threads), staged, stream, job);
}

}  // namespace moepic::device
