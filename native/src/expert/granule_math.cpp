#include "expert/granule_math.h"

namespace moepic {

void activate_granule(const ops::Kernels& kernels, const StripLayout& layout, const std::byte* granule, const GranuleInput& input,
                      const GranuleScratch& scratch) {
    const auto multiply = [&](const ops::TiledMatrix& w, const float* bias, float* y) {
        const auto kind = static_cast<size_t>(ops::act_kind(w.type));
        ops::MatmulJob job;
        job.w = w;
        job.acts = input.acts[kind];
        job.act_stride = input.act_stride[kind];
        job.gather = input.rows;
        job.n_tokens = input.n;
        job.y = y;
        job.y_stride = layout.granule;
        job.tile_end = w.n_tiles();
        job.bias = bias;
        job.scratch = scratch.kernel;
        kernels.matmul(job);
    };
    multiply(layout.gate(granule), layout.gate_bias(granule), scratch.gate);
    multiply(layout.up(granule), layout.up_bias(granule), scratch.up);
    if (input.entry_weight) {  // both are linear in the input
        for (int64_t i = 0; i < input.n; ++i) {
            kernels.scale(scratch.gate + i * layout.granule, input.entry_weight[i], layout.granule);
            kernels.scale(scratch.up + i * layout.granule, input.entry_weight[i], layout.granule);
        }
    }
    kernels.glu(input.glu, scratch.gate, scratch.up, scratch.gate, input.n * layout.granule);
}

void quantize_granule(const ops::Kernels& kernels, const StripLayout& layout, int64_t n, const GranuleScratch& scratch, std::byte* out,
                      size_t stride) {
    const ops::ActKind kind = ops::act_kind(layout.down_type);
    for (int64_t i = 0; i < n; ++i)
        kernels.quantize_act(kind, scratch.gate + i * layout.granule, layout.granule, out + static_cast<size_t>(i) * stride);
}

void project_granule(const ops::Kernels& kernels, const StripLayout& layout, const std::byte* granule, int64_t n,
                     const std::byte* intermediate, size_t stride, float* y, int64_t y_stride, std::byte* kernel_scratch) {
    ops::MatmulJob job;
    job.w = layout.down(granule);
    job.acts = intermediate;
    job.act_stride = stride;
    job.n_tokens = n;
    job.y = y;
    job.y_stride = y_stride;
    job.tile_end = job.w.n_tiles();
    job.scratch = kernel_scratch;
    kernels.matmul(job);
}

}  // namespace moepic
