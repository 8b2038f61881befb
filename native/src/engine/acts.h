// Activations of a batch in the forms the weights want: quantized once per kind that some weight of the step reads.
#pragma once

#include <cstdint>

#include "base/region.h"
#include "device/jobs.h"
#include "engine/model.h"
#include "ops/ops.h"

namespace moepic {

using device::Acts;
using device::kActKinds;
using ActMask = uint32_t;  // bit ActKind

inline ActMask act_mask(const Linear& linear) noexcept {
    return linear.w.rows ? ActMask{1} << static_cast<int>(ops::act_kind(linear.w.type)) : 0;
}

// Row `row` of acts = x, in the kinds of `mask`. On the host.
inline void quantize_row(const ops::Kernels& kernels, ActMask mask, const float* x, int64_t cols, const Acts& acts, int64_t row) noexcept {
    for (int kind = 0; kind < kActKinds; ++kind) {
        if (mask >> kind & 1)
            kernels.quantize_act(static_cast<ops::ActKind>(kind), x, cols, acts.data[kind] + static_cast<size_t>(row) * acts.stride[kind]);
    }
}

// Their place in somebody's memory, which may be a device's.
class ActSet {
public:
    // Reserves for n tokens of `cols` values and the kinds of `mask`.
    void reserve(Carver& carver, ActMask mask, int64_t cols, int64_t n) {
        for (int kind = 0; kind < kActKinds; ++kind) {
            if (!(mask >> kind & 1)) continue;
            acts_.stride[kind] = ops::act_bytes(static_cast<ops::ActKind>(kind), cols);
            acts_.data[kind] = carver.take<std::byte>(acts_.stride[kind] * static_cast<size_t>(n));
        }
    }
    const Acts& acts() const noexcept { return acts_; }
    const std::byte* data(ops::ActKind kind) const noexcept { return acts_.data[static_cast<size_t>(kind)]; }
    size_t stride(ops::ActKind kind) const noexcept { return acts_.stride[static_cast<size_t>(kind)]; }

private:
    Acts acts_{};
};

// y = W acts, to rows that lie side by side.
inline device::MatmulJob matmul_job(const Linear& linear, const ActSet& acts, float* y) noexcept {
    const ops::ActKind kind = ops::act_kind(linear.w.type);
    device::MatmulJob job;
    job.w = linear.w;
    job.acts = acts.data(kind);
    job.act_stride = acts.stride(kind);
    job.y = y;
    job.y_stride = linear.w.rows;
    job.bias = linear.bias;
    return job;
}

// y[t][head] = W_head acts[t][head], heads of y `apart` floats from each other; W's heads are whole tiles, one after the other.
inline device::MatmulJob matmul_of_heads(const Linear& linear, const ActSet& acts, int64_t n_head, float* y, int64_t apart) noexcept {
    device::MatmulJob job = matmul_job(linear, acts, y);
    job.n_group = n_head;
    job.act_group = job.act_stride;
    job.act_stride *= static_cast<size_t>(n_head);
    job.y_group = apart;
    job.y_stride = n_head * apart;
    return job;
}

}  // namespace moepic
