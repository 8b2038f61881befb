// y = W x for up to four matrices in one launch, of any types: the type is a branch that a whole thread block takes together.
//
//   few tokens    split_kernel: rows cut along k over the warps of a block (matmul.cuh); 8 or 16 tokens meet a weight while it is in
//   registers many tokens   rows_kernel: a warp walks a whole tile row for 32 tokens, 8 tiles to a block, sums in registers (product.cuh)
//
// A weight of the many is read once per 32 tokens, from L2 after the first: blocks of one tile group and all tokens are neighbours in the
// grid. Per 32 weights of 16 rows and 8 tokens stand 1 or 2 tensor core products, 4 or 8 multiplications by sub-block scales and 2 loads of
// activations: the integer units and the tensor cores are loaded about alike. Not measured on a device yet.
#include "cuda/matmul.cuh"
#include "cuda/matmul.h"

namespace moepic::device {
namespace {

// From here on the tokens go in groups of 32. Up to here each 16 tokens read the weights again; beyond, few rows occupy few warps.
constexpr int64_t kManyTokens = 33;
constexpr int kRowGroups = 4, kRowWarps = 8;

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
__global__ void __launch_bounds__(kSplitThreads) split_kernel(ListJob all) {
    const int j = find_job(all, static_cast<int>(blockIdx.x));
    const MatmulJob& job = all.list.jobs[j];
    const int64_t first = (static_cast<int64_t>(blockIdx.x) - all.first[j]) * all.tiles[j];
    const int64_t left = (job.w.rows + ops::kTileRows - 1) / ops::kTileRows - first;
    split_block<groups>(job, first, left < all.tiles[j] ? left : all.tiles[j], static_cast<int64_t>(blockIdx.y) * 8 * groups,
                        all.list.n_tokens);
}

__global__ void __launch_bounds__(32 * kRowWarps) rows_kernel(ListJob all) {
    const int j = find_job(all, static_cast<int>(blockIdx.y));
    const MatmulJob& job = all.list.jobs[j];
    const int64_t tile = (static_cast<int64_t>(blockIdx.y) - all.first[j]) * kRowWarps + threadIdx.x / 32;
    if (tile * ops::kTileRows >= job.w.rows) return;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * 8 * kRowGroups;
    const Lane lane = this_lane();
    const LaneActs<kRowGroups> x({acts_of(job, tile), job.act_stride, nullptr, all.list.n_tokens}, first, lane);
    float sum[kRowGroups][4] = {};
    sum_any_tile<kRowGroups>(job.w.type, job.w.data, job.w.cols, tile, x, lane, sum);
    for (int n = 0; n < kRowGroups; ++n) {
        for (int i = 0; i < 4; ++i) {
            const int64_t token = first + 8 * n + 2 * lane.c + i % 2;
            if (token < all.list.n_tokens) finish(job, tile * ops::kTileRows + 2 * lane.g + i / 2, token, sum[n][i]);
        }
    }
}

}  // namespace

int32_t matmul(const MatmulList& list, Stream stream) {
    ListJob all{list, {}, {}};
    const bool many = list.n_tokens >= kManyTokens;
    for (int j = 0; j < list.n_jobs; ++j) {
        const ops::TiledMatrix& w = list.jobs[j].w;
        all.tiles[j] = many ? kRowWarps : static_cast<int32_t>(tiles_per_block(w));
        all.first[j + 1] = all.first[j] + static_cast<int32_t>((w.n_tiles() + all.tiles[j] - 1) / all.tiles[j]);
    }
    const auto n_blocks = static_cast<unsigned>(all.first[list.n_jobs]);
    const auto token_blocks = [&](int64_t width) { return static_cast<unsigned>((list.n_tokens + width - 1) / width); };
    if (many) return launch(rows_kernel, dim3(token_blocks(8 * kRowGroups), n_blocks), dim3(32 * kRowWarps), 0, stream, all);
    if (list.n_tokens <= 8) return launch(split_kernel<1>, dim3(n_blocks), dim3(kSplitThreads), kSplitSharedBytes, stream, all);
    return launch(split_kernel<2>, dim3(n_blocks, token_blocks(16)), dim3(kSplitThreads), kSplitSharedBytes, stream, all);
}

}  // namespace moepic::device
