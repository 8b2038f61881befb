// Granules of experts: every (granule, entries) of a layer in one launch, wherever the granule lies that the device can read.
//
//   expert_intermediate   act(gate x) * up x of a granule's neurons, quantized for down
//   expert_down_few       down's product of one granule, a row of partials for each entry
//   expert_down_many      the same, granules of a run added in their order
//
// Decode reads each granule once and little else: gate and up of 8 experts of 768 x 2048 in Q4_K are 14 MB a layer, down half of that. A
// thread block of the intermediate has to hold all neurons that share one scale of down's activations, 256 or 32, so there each warp walks
// whole rows of tiles alone (product.cuh). With 256 that is 24 blocks of 16 warps, fewer than a large device has SMs, but a warp has up to
// two blocks of weights on their way: 37 to 74 KB an SM, what a latency of 600 ns needs for 60 to 120 GB/s. Down has short rows and many
// tiles; a block takes several (matmul.cuh). Every warp reads its task: lists had better lie on the device. Not measured: this was written
// without a GPU.
#include <algorithm>

#include "cuda/experts.h"
#include "cuda/matmul.cuh"
#include "cuda/quantize.cuh"
#include "quant/types.h"

namespace moepic::device {
namespace {

// Entries that meet a weight together: up to kFewEntries of a granule, each 8 read its weights again.
constexpr int kFewGroups = 1, kManyGroups = 4;
constexpr int32_t kFewEntries = 16;

// Threads of a block of the intermediate, and the least neurons it takes: few entries want registers for bytes on their way, many share
// their activations among 8 tiles.
template <int groups>
inline constexpr int kThreads = groups == kFewGroups ? 512 : kStageThreads;
template <int groups>
inline constexpr int kLeastWidth = groups == kFewGroups ? 32 : kStageThreads / 32 * ops::kTileRows;

struct IntermediateJob {
    ExpertJob job;
    int32_t width;                 // neurons of a thread block: 256, or kLeastWidth where down's scales are over 32 or absent
    int32_t n_widths;              // thread blocks of a granule
    ops::ActKind kind;             // of down
    size_t row_bytes, part_bytes;  // of a row of intermediate, of `width` neurons in it
};

// sum = a tile of gate or up, + bias, times the entries' weights.
template <int groups>
__device__ __forceinline__ void project(const ExpertJob& job, const ExpertTask& task, bool is_up, int tile, int first, Lane lane,
                                        uint32_t* shared, float (&sum)[groups][4]) {
    const GranuleShape& shape = job.shape;
    const Type type = is_up ? shape.up_type : shape.gate_type;
    const size_t bias_offset = is_up ? shape.up_bias_offset : shape.gate_bias_offset;
    const std::byte* weights = task.data + (is_up ? shape.up_offset : 0);
    const int kind = act_kind_of(type), cols = static_cast<int>(shape.n_embd);
    const int32_t* tokens = job.entry_token + task.first_entry;
    const TokenRows rows{job.acts.data[kind], static_cast<uint32_t>(job.acts.stride[kind]), tokens, task.n_entries};
    if constexpr (groups == kFewGroups)
        sum_any_tile<groups>(type, weights, cols, tile, rows, first, lane, sum);
    else
        sum_any_tile_staged<groups>(type, weights, cols, tile, rows, first, lane, shared, sum);
#pragma unroll
    for (int g = 0; g < groups; ++g) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int entry = first + 8 * g + 2 * lane.c + i % 2, row = tile * ops::kTileRows + 2 * lane.g + i / 2;
            if (entry >= task.n_entries || row >= shape.granule) continue;
            if (bias_offset != 0) sum[g][i] += reinterpret_cast<const float*>(task.data + bias_offset)[row];
            if (job.entry_weight) sum[g][i] *= job.entry_weight[task.first_entry + entry];
        }
    }
}

// A warp takes tiles of the block's neurons, gate and up of each, and joins them; then a warp takes an entry and quantizes it.
template <int groups>
__global__ void __launch_bounds__(kThreads<groups>, groups == kFewGroups ? 1 : 2) intermediate_kernel(IntermediateJob all) {
    const ExpertJob& job = all.job;
    const ExpertTask task = job.tasks[blockIdx.x / all.n_widths];
    const int first = static_cast<int>(blockIdx.y) * 8 * groups, granule = static_cast<int>(job.shape.granule);
    if (first >= task.n_entries) return;
    const int n = task.n_entries - first < 8 * groups ? task.n_entries - first : 8 * groups;
    const int n_warps = static_cast<int>(blockDim.x / 32), warp = static_cast<int>(threadIdx.x / 32);
    const int part = static_cast<int>(blockIdx.x) % all.n_widths, first_neuron = part * all.width;
    const int count = granule - first_neuron < all.width ? granule - first_neuron : all.width;
    const int n_tiles = (count + ops::kTileRows - 1) / ops::kTileRows;
    auto* joined = shared_memory<float>();  // [entry][width], then what is staged
    auto* staged = reinterpret_cast<uint32_t*>(joined + 8 * groups * all.width);

    const Lane lane = this_lane();
    for (int round = 0; round < n_tiles; round += n_warps) {
        const int tile = round + warp;
        if (groups == kFewGroups && tile >= n_tiles) break;
        const int own = first_neuron / ops::kTileRows + (tile < n_tiles ? tile : n_tiles - 1);  // every warp stays for the barriers
        float gate[groups][4], up[groups][4] = {};  // what the loop has summed last moves on to gate
#pragma unroll 1
        for (int is_up = 0; is_up < 2; ++is_up) {
#pragma unroll
            for (int g = 0; g < groups; ++g) {
#pragma unroll
                for (int i = 0; i < 4; ++i) gate[g][i] = up[g][i], up[g][i] = 0.0f;
            }
            project<groups>(job, task, is_up != 0, own, first, lane, staged, up);
        }
        if (tile >= n_tiles) continue;
#pragma unroll
        for (int g = 0; g < groups; ++g) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int entry = 8 * g + 2 * lane.c + i % 2;
                joined[entry * all.width + tile * ops::kTileRows + 2 * lane.g + i / 2] = glu(job.glu, gate[g][i], up[g][i]);
            }
        }
    }
    __syncthreads();
    for (int entry = warp; entry < n; entry += n_warps) {
        const int64_t row = static_cast<int64_t>(task.first_entry + first + entry) * job.shape.n_granules + task.granule;
        std::byte* to = job.intermediate + static_cast<size_t>(row) * all.row_bytes + static_cast<size_t>(part) * all.part_bytes;
        quantize_by(all.kind, joined + entry * all.width, count, to);
    }
}

struct DownJob {
    ExpertJob job;
    int32_t tiles, n_parts;  // tiles of a thread block, thread blocks of a task or run
    size_t row_bytes;
};

template <int groups>
__global__ void __launch_bounds__(kSplitThreads, 3) down_few_kernel(DownJob all) {
    const GranuleShape& shape = all.job.shape;
    const ExpertTask task = all.job.tasks[blockIdx.x / all.n_parts];
    const int first_token = static_cast<int>(blockIdx.y) * 8 * groups;
    if (first_token >= task.n_entries) return;
    MatmulJob job;
    job.w = {shape.down_type, shape.n_embd, shape.granule, task.data + shape.down_offset};
    job.acts = all.job.intermediate + (static_cast<size_t>(task.first_entry) * shape.n_granules + task.granule) * all.row_bytes;
    job.act_stride = static_cast<size_t>(shape.n_granules) * all.row_bytes;
    job.y = all.job.partials + task.first_row * shape.n_embd;
    job.y_stride = shape.n_granules * shape.n_embd;
    const int first = static_cast<int>(blockIdx.x % all.n_parts) * all.tiles, left = n_tiles_of(job) - first;
    split_block<groups>(job, first, left < all.tiles ? left : all.tiles, first_token, task.n_entries);
}

// A warp for each tile: it adds the granules of the run one after another to what is there, so no two blocks meet in a sum.
template <int groups>
__global__ void __launch_bounds__(kStageThreads, 2) down_many_kernel(DownJob all) {
    const ExpertJob& job = all.job;
    const GranuleShape& shape = job.shape;
    const ExpertRun run = job.runs[blockIdx.x / all.n_parts];
    const int n_tiles = static_cast<int>(shape.n_embd + ops::kTileRows - 1) / ops::kTileRows;
    const int tile = static_cast<int>(blockIdx.x) % all.n_parts * kSplitWarps + static_cast<int>(threadIdx.x / 32);
    const int first = static_cast<int>(blockIdx.y) * 8 * groups;
    const Lane lane = this_lane();
    float total[groups][4] = {};
#pragma unroll 1
    for (int t = run.first; t < run.first + run.count; ++t) {
        const ExpertTask task = job.tasks[t];
        if (first >= task.n_entries) return;
        const std::byte* acts =
            job.intermediate + (static_cast<size_t>(task.first_entry) * shape.n_granules + task.granule) * all.row_bytes;
        const TokenRows rows{acts, static_cast<uint32_t>(shape.n_granules * all.row_bytes), nullptr, task.n_entries};
        float sum[groups][4] = {};
        sum_any_tile_staged<groups>(shape.down_type, task.data + shape.down_offset, static_cast<int>(shape.granule),
                                    tile < n_tiles ? tile : n_tiles - 1, rows, first, lane, shared_memory<uint32_t>(), sum);
        if (tile >= n_tiles) continue;
#pragma unroll
        for (int g = 0; g < groups; ++g) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int entry = first + 8 * g + 2 * lane.c + i % 2, row = tile * ops::kTileRows + 2 * lane.g + i / 2;
                if (entry >= task.n_entries || row >= shape.n_embd) continue;
                float* y = job.partials + (task.first_entry + entry) * shape.n_embd + row;
                if (task.granule == 0)
                    total[g][i] = sum[g][i];
                else
                    total[g][i] = (t == run.first ? *y : total[g][i]) + sum[g][i];
                if (t + 1 == run.first + run.count) *y = total[g][i];
            }
        }
    }
}

size_t row_bytes(const GranuleShape& shape) {
    return ops::act_bytes(ops::act_kind(shape.down_type), shape.granule);
}
unsigned entry_blocks(const ExpertJob& job, int groups) {
    return static_cast<unsigned>((job.most_entries + 8 * groups - 1) / (8 * groups));
}

}  // namespace

int32_t expert_intermediate(const ExpertJob& job, Stream stream) {
    const ops::ActKind kind = ops::act_kind(job.shape.down_type);
    const auto run = [&](auto kernel, int groups, int most_threads, int least_width) {
        IntermediateJob all{job, kind == ops::ActKind::q8_256 ? 256 : least_width, 0, kind, row_bytes(job.shape), 0};
        all.n_widths = static_cast<int32_t>((job.shape.granule + all.width - 1) / all.width);
        all.part_bytes = kind == ops::ActKind::q8_256  ? sizeof(ops::Act256)
                         : kind == ops::ActKind::q8_32 ? all.width / 32 * sizeof(ops::Act32)
                                                       : all.width * sizeof(float);
        const dim3 grid(static_cast<unsigned>(job.n_tasks * all.n_widths), entry_blocks(job, groups));
        const int threads = groups == kFewGroups ? std::min(most_threads, all.width / ops::kTileRows * 32) : most_threads;
        const size_t staged = groups == kFewGroups ? 0 : StagedActs<kManyGroups>::kSharedBytes;
        const size_t shared = sizeof(float) * static_cast<size_t>(8 * groups * all.width) + staged;
        return launch(kernel, grid, dim3(static_cast<unsigned>(threads)), shared, stream, all);
    };
    if (job.most_entries <= kFewEntries)
        return run(intermediate_kernel<kFewGroups>, kFewGroups, kThreads<kFewGroups>, kLeastWidth<kFewGroups>);
    return run(intermediate_kernel<kManyGroups>, kManyGroups, kThreads<kManyGroups>, kLeastWidth<kManyGroups>);
}

int32_t expert_down_few(const ExpertJob& job, Stream stream) {
    const ops::TiledMatrix down{job.shape.down_type, job.shape.n_embd, job.shape.granule, nullptr};
    DownJob all{job, static_cast<int32_t>(tiles_per_block(down)), 0, row_bytes(job.shape)};
    all.n_parts = static_cast<int32_t>((down.n_tiles() + all.tiles - 1) / all.tiles);
    const dim3 grid(static_cast<unsigned>(job.n_tasks * all.n_parts), entry_blocks(job, kFewGroups));
    return launch(down_few_kernel<kFewGroups>, grid, dim3(kSplitThreads), kSplitSharedBytes, stream, all);
}

int32_t expert_down_many(const ExpertJob& job, Stream stream) {
    DownJob all{job, kSplitWarps, 0, row_bytes(job.shape)};
    all.n_parts = static_cast<int32_t>((job.shape.n_embd + kSplitWarps * ops::kTileRows - 1) / (kSplitWarps * ops::kTileRows));
    const dim3 grid(static_cast<unsigned>(job.n_runs * all.n_parts), entry_blocks(job, kManyGroups));
    return launch(down_many_kernel<kManyGroups>, grid, dim3(kStageThreads), StagedActs<kManyGroups>::kSharedBytes, stream, all);
}

}  // namespace moepic::device
