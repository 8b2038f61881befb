// What every step of a forward pass shares: the threads, the kernels, per-thread scratch, and activations in the forms the weights want.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "base/region.h"
#include "base/thread_pool.h"
#include "engine/model.h"
#include "ops/ops.h"

namespace moepic {

inline constexpr int kActKinds = 3;
using ActMask = uint32_t;  // bit ActKind

inline ActMask act_mask(const Linear& linear) noexcept {
    return linear.w.rows ? ActMask{1} << static_cast<int>(ops::act_kind(linear.w.type)) : 0;
}

// Activations of a batch, quantized once per kind that some weight of the step wants.
class ActSet {
public:
    // Reserves for n tokens of `cols` values and the kinds of `mask`.
    void reserve(Carver& carver, ActMask mask, int64_t cols, int64_t n) {
        for (int kind = 0; kind < kActKinds; ++kind) {
            if (!(mask >> kind & 1)) continue;
            stride_[kind] = ops::act_bytes(static_cast<ops::ActKind>(kind), cols);
            data_[kind] = carver.take<std::byte>(stride_[kind] * static_cast<size_t>(n));
        }
    }
    const std::byte* data(ops::ActKind kind) const noexcept { return data_[static_cast<size_t>(kind)]; }
    size_t stride(ops::ActKind kind) const noexcept { return stride_[static_cast<size_t>(kind)]; }
    void quantize(const ops::Kernels& kernels, ActMask mask, const float* x, int64_t cols, int64_t t) const noexcept {
        for (int kind = 0; kind < kActKinds; ++kind) {
            if (mask >> kind & 1)
                kernels.quantize_act(static_cast<ops::ActKind>(kind), x, cols, data_[kind] + static_cast<size_t>(t) * stride_[kind]);
        }
    }

private:
    std::array<std::byte*, kActKinds> data_{};
    std::array<size_t, kActKinds> stride_{};
};

struct Projection {
    const Linear* linear;
    float* y;  // [n][rows]
};

class Workspace {
public:
    // n_more: threads beside the pool that compute too, numbered after its own.
    Workspace(const ops::Kernels& kernels, int n_threads, int n_more)
        : kernels_(kernels), pool_(n_threads), n_threads_(pool_.size() + n_more) {
        const size_t per_thread = std::max(ops::kMatmulScratchBytes, ops::kAttentionScratchBytes);
        scratch_ = Region(per_thread * static_cast<size_t>(n_threads_), "per-thread scratch");
        per_thread_ = per_thread;
    }
    const ops::Kernels& kernels() const noexcept { return kernels_; }
    ThreadPool& pool() noexcept { return pool_; }
    int n_threads() const noexcept { return n_threads_; }
    std::byte* scratch(int thread) const noexcept { return scratch_.data() + per_thread_ * static_cast<size_t>(thread); }
    uint64_t bytes() const noexcept { return scratch_.size(); }

    // y = W x for several matrices over the same tokens, as one job. acts holds every kind wanted.
    void project(std::span<const Projection> projections, const ActSet& acts, int64_t n_tokens) {
        int64_t tiles = 0;
        for (const Projection& p : projections) tiles += p.linear->w.n_tiles();
        // Enough chunks that threads end together, few enough that a chunk is worth its claim; groups of 4 tiles suit the kernels.
        const int64_t chunk = std::max<int64_t>(1, tiles / (pool_.size() * int64_t{8}) / 4 * 4);
        int64_t tasks = 0;
        for (const Projection& p : projections) tasks += (p.linear->w.n_tiles() + chunk - 1) / chunk;
        pool_.run(tasks, [&](int64_t task, int thread) {
            for (const Projection& p : projections) {
                const int64_t here = (p.linear->w.n_tiles() + chunk - 1) / chunk;
                if (task >= here) {
                    task -= here;
                    continue;
                }
                const ops::ActKind kind = ops::act_kind(p.linear->w.type);
                ops::MatmulJob job;
                job.w = p.linear->w;
                job.acts = acts.data(kind);
                job.act_stride = acts.stride(kind);
                job.n_tokens = n_tokens;
                job.y = p.y;
                job.y_stride = p.linear->w.rows;
                job.tile_begin = task * chunk;
                job.tile_end = std::min(job.tile_begin + chunk, p.linear->w.n_tiles());
                job.bias = p.linear->bias;
                job.scratch = scratch(thread);
                kernels_.matmul(job);
                return;
            }
        });
    }

private:
    const ops::Kernels& kernels_;
    ThreadPool pool_;
    int n_threads_;
    Region scratch_;
    size_t per_thread_ = 0;
};

}  // namespace moepic
