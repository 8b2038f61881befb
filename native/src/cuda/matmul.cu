// y = W x for up to four matrices in one launch, of any types: the type is a branch that a whole thread block takes together.
//
//   split_kernel   few tokens: rows are cut along k over the warps of a block (matmul.cuh); 8 or 16 tokens meet a weight in registers
//   rows_kernel    many: a warp walks a whole row of a tile for 32 tokens, 8 tiles to a block, sums in registers (product.cuh)
//
// Of the many, a weight is read once per 32 tokens, from L2 after the first: thread blocks of the same tiles are neighbours in the grid. To
// 32 weights of 16 rows and 8 tokens go one or two tensor core products, 4 or 8 multiplications by sub-block scales and a load of 8 bytes
// of activations from shared memory, so that tensor cores, integer units and shared memory are loaded about alike, and two blocks of 128
// registers share an SM. Not measured: this was written without a GPU.
#include "cuda/matmul.cuh"
#include "cuda/matmul.h"

namespace moepic::device {
namespace {

// rows_kernel from so many of its thread blocks on: with fewer (small matrices, routers) most of a device would idle, and reading weights
// again for each 16 tokens, from L2, costs less. A guess at half a device, to be measured.
constexpr unsigned kBusyBlocks = 64;
constexpr int kRowGroups = 4, kRowWarps = kStageThreads / 32;

struct ListJob {
    MatmulList list;
    int32_t first[kMostMatmuls + 1];  // thread block of each job; the last is the end
    int32_t tiles[kMostMatmuls];      // of a thread block
};

__device__ int find_job(const ListJob& all, int block) {
    int j = 0;
    while (block >= all.first[j + 1]) ++j;
    return j;
}

template <int groups>
__global__ void __launch_bounds__(kSplitThreads, groups == 1 ? 3 : 2) split_kernel(ListJob all) {
    const int j = find_job(all, static_cast<int>(blockIdx.x));
    const MatmulJob& job = all.list.jobs[j];
    const int first = (static_cast<int>(blockIdx.x) - all.first[j]) * all.tiles[j], left = n_tiles_of(job) - first;
    split_block<groups>(job, first, left < all.tiles[j] ? left : all.tiles[j], static_cast<int>(blockIdx.y) * 8 * groups,
                        static_cast<int>(all.list.n_tokens));
}

__global__ void __launch_bounds__(kStageThreads, 2) rows_kernel(ListJob all) {
    const int j = find_job(all, static_cast<int>(blockIdx.y));
    const MatmulJob& job = all.list.jobs[j];
    // The warps of a block share their activations, so a block stays within a group of rows.
    const int index = static_cast<int>(blockIdx.y) - all.first[j], group_tiles = n_tiles_of(job) / static_cast<int>(job.n_group);
    const int per_group = (group_tiles + kRowWarps - 1) / kRowWarps, group = index / per_group;
    const int tile = group * group_tiles + (index - group * per_group) * kRowWarps + static_cast<int>(threadIdx.x / 32);
    const int last = (group + 1) * group_tiles - 1;
    const int first = static_cast<int>(blockIdx.x) * 8 * kRowGroups, n_tokens = static_cast<int>(all.list.n_tokens);
    const Lane lane = this_lane();
    float sum[kRowGroups][4] = {};
    // Warps beyond the last tile stay for the barriers.
    const int own = tile < last ? tile : last;
    sum_any_tile_staged<kRowGroups>(job.w.type, job.w.data, static_cast<int>(job.w.cols), own, rows_of(job, own, n_tokens), first, lane,
                                    shared_memory<uint32_t>(), sum);
    if (tile > last) return;
#pragma unroll
    for (int n = 0; n < kRowGroups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int token = first + 8 * n + 2 * lane.c + i % 2;
            if (token < n_tokens) finish(job, tile * ops::kTileRows + 2 * lane.g + i / 2, token, sum[n][i]);
        }
    }
}

}  // namespace

int32_t matmul(const MatmulList& list, Stream stream) {
    const auto token_blocks = [&](int64_t width) { return static_cast<unsigned>((list.n_tokens + width - 1) / width); };
    const auto make = [&](bool many) {
        ListJob all{list, {}, {}};
        for (int j = 0; j < list.n_jobs; ++j) {
            const ops::TiledMatrix& w = list.jobs[j].w;
            const int64_t n_group = many ? list.jobs[j].n_group : 1, n_tiles = w.n_tiles() / n_group;
            all.tiles[j] = many ? kRowWarps : static_cast<int32_t>(tiles_per_block(w));
            all.first[j + 1] = all.first[j] + static_cast<int32_t>(n_group * ((n_tiles + all.tiles[j] - 1) / all.tiles[j]));
        }
        return all;
    };
    const auto n_blocks = [&](const ListJob& all) { return static_cast<unsigned>(all.first[list.n_jobs]); };
    if (list.n_tokens > 32) {
        const ListJob all = make(true);
        const dim3 grid(token_blocks(8 * kRowGroups), n_blocks(all));
        if (grid.x * grid.y >= kBusyBlocks)
            return launch(rows_kernel, grid, dim3(kStageThreads), StagedActs<kRowGroups>::kSharedBytes, stream, all);
    }
    const ListJob all = make(false);
    if (list.n_tokens <= 8)
        return launch(split_kernel<1>, dim3(n_blocks(all), token_blocks(8)), dim3(kSplitThreads), kSplitSharedBytes, stream, all);
    return launch(split_kernel<2>, dim3(n_blocks(all), token_blocks(16)), dim3(kSplitThreads), kSplitSharedBytes, stream, all);
}

}  // namespace moepic::device
