// out = glu(gate, up), and out as activations: Kernels::glu and quantize_act of each row.
//   gate, up, out [n] rows, each with a stride of its own; out may be gate or up
// A warp makes 256 elements, which is the step that quantize_row takes, and so quantizes what its own lanes have just written. Moves 12
// bytes an element and what the activations take; rows are a feed-forward's width, so decode is bound by the launch and prefill by memory.
#include "cuda/elementwise.h"
#include "cuda/quantize.cuh"

namespace moepic::device {
namespace {

constexpr int kWarps = 4;

__global__ void glu_kernel(GluJob job) {
    const int64_t row = blockIdx.x;
    const int warp = static_cast<int>(blockIdx.y * kWarps + threadIdx.x / 32), n_warps = static_cast<int>(gridDim.y) * kWarps;
    const float *gate = job.gate + row * job.gate_stride, *up = job.up + row * job.up_stride;
    float* const out = job.out + row * job.out_stride;
    for (int64_t step = warp; step * kStep < job.cols; step += n_warps) {
        for (int64_t i = step * kStep + lane_id(); i < (step + 1) * kStep && i < job.cols; i += 32) out[i] = glu(job.kind, gate[i], up[i]);
    }
    if (job.mask == 0) return;
    __syncwarp();
    quantize_row(job.mask, out, job.cols, job.acts, row, warp, n_warps);
}

}  // namespace

int32_t glu(const GluJob& job, Stream stream) {
    const dim3 grid(static_cast<unsigned>(job.n), static_cast<unsigned>((job.cols + kStep * kWarps - 1) / (kStep * kWarps)));
    return launch(glu_kernel, grid, dim3(32 * kWarps), 0, stream, job);
}

}  // namespace moepic::device
