// Rows of floats to the activations that weights want (quantize.cuh). Reads 4 bytes an element and writes about 1.3 for each kind; a launch
// moves kilobytes, so its latency is all there is: a warp per 256 elements, and one launch for all kinds.
#include "cuda/quantize.cuh"
#include "cuda/quantize.h"

namespace moepic::device {
namespace {

constexpr int kWarps = 4;

struct QuantizeJob {
    uint32_t mask;
    const float* x;
    int64_t stride, cols;
    Acts acts;
};

__global__ void quantize_kernel(QuantizeJob job) {
    const int64_t row = blockIdx.x;
    const int warp = static_cast<int>(blockIdx.y * kWarps + threadIdx.x / 32);
    quantize_row(job.mask, job.x + row * job.stride, job.cols, job.acts, row, warp, static_cast<int>(gridDim.y) * kWarps);
}

}  // namespace

int32_t quantize(uint32_t mask, const float* x, int64_t stride, int64_t cols, int64_t n, const Acts& acts, Stream stream) {
    const dim3 grid(static_cast<unsigned>(n), static_cast<unsigned>((cols + kStep * kWarps - 1) / (kStep * kWarps)));
    return launch(quantize_kernel, grid, dim3(32 * kWarps), 0, stream, QuantizeJob{mask, x, stride, cols, acts});
}

}  // namespace moepic::device
