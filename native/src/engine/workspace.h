// What everybody who computes on the host shares: the threads, the kernels, and per-thread scratch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/region.h"
#include "base/thread_pool.h"
#include "device/jobs.h"
#include "ops/ops.h"

namespace moepic {

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

    // Several matrices over the same tokens, as one job of the pool.
    void matmul(const device::MatmulList& list) {
        int64_t tiles = 0;
        for (int i = 0; i < list.n_jobs; ++i) tiles += list.jobs[i].w.n_tiles();
        // Enough chunks that threads end together, few enough that a chunk is worth its claim; groups of 4 tiles suit the kernels.
        const int64_t chunk = std::max<int64_t>(1, tiles / (pool_.size() * int64_t{8}) / 4 * 4);
        const auto chunks_of_group = [&](const device::MatmulJob& job) { return (job.w.n_tiles() / job.n_group + chunk - 1) / chunk; };
        int64_t tasks = 0;
        for (int i = 0; i < list.n_jobs; ++i) tasks += list.jobs[i].n_group * chunks_of_group(list.jobs[i]);
        pool_.run(tasks, [&](int64_t task, int thread) {
            const device::MatmulJob* job = list.jobs;
            for (; task >= job->n_group * chunks_of_group(*job); ++job) task -= job->n_group * chunks_of_group(*job);
            const int64_t chunks = chunks_of_group(*job), group = task / chunks, group_tiles = job->w.n_tiles() / job->n_group;
            const int64_t first = task % chunks * chunk;
            ops::MatmulJob part;
            part.w = job->w;
            part.acts = job->acts + static_cast<size_t>(group) * job->act_group;
            part.act_stride = job->act_stride;
            part.n_tokens = list.n_tokens;
            part.y = job->y + group * (job->y_group - job->w.rows / job->n_group);  // the kernel adds the row in W
            part.y_stride = job->y_stride;
            part.tile_begin = group * group_tiles + first;
            part.tile_end = group * group_tiles + std::min(first + chunk, group_tiles);
            part.bias = job->bias;
            part.scratch = scratch(thread);
            kernels_.matmul(part);
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
