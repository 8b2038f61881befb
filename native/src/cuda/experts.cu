// Granules of experts: every (granule, entries) of a layer in one launch, wherever the granule lies that the device can read.
//
//   expert_intermediate   act(gate x) * up x of a granule's neurons, quantized for down
//   expert_down_few       down's product of one granule, a row of partials for each entry
//   expert_down_many      the same, granules of a run added in their order
//
// Decode reads each granule once and little else: gate and up of 8 experts of 768 x 2048 in Q4_K are 14 MB a layer, down half of that. A
// thread block of the intermediate has to hold all neurons that share one scale of down's activations, 256 or 32, so there a warp walks a
// whole tile row alone (product.cuh), 32 warps of 2.3 KB in flight side by side: 24 blocks, no more than a device's SMs but each with as
// many bytes on their way as one SM can take. Down has short rows and many tiles; a block takes several (matmul.cuh). Not measured yet.
#include <algorithm>

#include "cuda/experts.h"
#include "cuda/matmul.cuh"
#include "cuda/quantize.cuh"
#include "quant/types.h"

namespace moepic::device {
namespace {

// Entries that meet a weight together. Up to kFewEntries per granule the weights are read again for each 8.
constexpr int kFewGroups = 1, kManyGroups = 4;
constexpr int32_t kFewEntries = 16;

struct IntermediateJob {
    ExpertJob job;
    int32_t width;                 // neurons of a thread block: 256 or 32
    int32_t n_widths;              // blocks of a granule
    int32_t kind;                  // down's ActKind
    size_t row_bytes, part_bytes;  // of a row of intermediate, of `width` neurons in it
};

// Threads of a block at most: all 32 tiles of 256 neurons at once where memory is the bound, as many registers as sums want where it is
// not.
template <int groups>
inline constexpr int kIntermediateThreads = groups == kFewGroups ? 1024 : 256;

// The block's tiles of gate, then of up, over its warps; then its neurons are joined and quantized, a warp per entry.
template <int groups>
__global__ void __launch_bounds__(kIntermediateThreads<groups>) intermediate_kernel(IntermediateJob all) {
    constexpr int kEntries = 8 * groups;
    const ExpertJob& job = all.job;
    const GranuleShape& shape = job.shape;
    const ExpertTask task = job.tasks[blockIdx.x / all.n_widths];
    const int first = static_cast<int>(blockIdx.y) * kEntries;
    if (first >= task.n_entries) return;
    const int n = task.n_entries - first < kEntries ? task.n_entries - first : kEntries;
    const int32_t entry = task.first_entry + first;
    const int width = all.width, n_warps = static_cast<int>(blockDim.x / 32), warp = static_cast<int>(threadIdx.x / 32);
    const int first_neuron = static_cast<int>(blockIdx.x % all.n_widths) * width, left = static_cast<int>(shape.granule) - first_neuron;
    const int count = left < width ? left : width, n_tiles = (count + ops::kTileRows - 1) / ops::kTileRows;
    auto* sums = shared_memory<float>();  // [gate, up][entry][width]

    const Lane lane = this_lane();
    for (int part = warp; part < 2 * n_tiles; part += n_warps) {
        const bool is_up = part >= n_tiles;
        const int tile_row = (is_up ? part - n_tiles : part) * ops::kTileRows;
        const Type type = is_up ? shape.up_type : shape.gate_type;
        const size_t bias_offset = is_up ? shape.up_bias_offset : shape.gate_bias_offset;
        const auto* bias = reinterpret_cast<const float*>(task.data + bias_offset) + first_neuron;
        const int kind = act_kind_of(type);
        const LaneActs<groups> x({job.acts.data[kind], static_cast<uint32_t>(job.acts.stride[kind]), job.entry_token + entry, n}, 0, lane);
        float sum[groups][4] = {};
        sum_any_tile<groups>(type, task.data + (is_up ? shape.up_offset : 0), static_cast<int>(shape.n_embd),
                             (first_neuron + tile_row) / ops::kTileRows, x, lane, sum);
#pragma unroll
        for (int g = 0; g < groups; ++g) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int token = 8 * g + 2 * lane.c + i % 2, row = tile_row + 2 * lane.g + i / 2;
                if (token >= n || row >= count) continue;
                float v = sum[g][i];
                if (bias_offset != 0) v += bias[row];
                if (job.entry_weight) v *= job.entry_weight[entry + token];
                sums[((is_up ? kEntries : 0) + token) * width + row] = v;
            }
        }
    }
    __syncthreads();
    for (int token = warp; token < n; token += n_warps) {
        float* gate = sums + token * width;
        const float* up = sums + (kEntries + token) * width;
        for (int i = lane_id(); i < count; i += 32) gate[i] = glu(job.glu, gate[i], up[i]);
        __syncwarp();
        const int64_t row = static_cast<int64_t>(entry + token) * shape.n_granules + task.granule;
        Acts out{};
        out.data[all.kind] =
            job.intermediate + static_cast<size_t>(row) * all.row_bytes + static_cast<size_t>(first_neuron) / width * all.part_bytes;
        quantize_row(1u << all.kind, gate, count, out, 0, 0, 1);
    }
}

struct DownJob {
    ExpertJob job;
    int32_t tiles, n_parts;  // tiles of a thread block, thread blocks of a task or run
    size_t row_bytes;
};

template <int groups>
__global__ void __launch_bounds__(kSplitThreads) down_few_kernel(DownJob all) {
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
__global__ void __launch_bounds__(kSplitThreads) down_many_kernel(DownJob all) {
    const ExpertJob& job = all.job;
    const GranuleShape& shape = job.shape;
    const ExpertRun run = job.runs[blockIdx.x / all.n_parts];
    const int tile = static_cast<int>(blockIdx.x % all.n_parts) * kSplitWarps + static_cast<int>(threadIdx.x / 32);
    if (tile * ops::kTileRows >= shape.n_embd) return;
    const Lane lane = this_lane();
    const int first = static_cast<int>(blockIdx.y) * 8 * groups;
    float total[groups][4] = {};
    for (int t = run.first; t < run.first + run.count; ++t) {
        const ExpertTask task = job.tasks[t];
        const int n = task.n_entries;
        if (first >= n) return;
        const std::byte* acts =
            job.intermediate + (static_cast<size_t>(task.first_entry) * shape.n_granules + task.granule) * all.row_bytes;
        const LaneActs<groups> x({acts, static_cast<uint32_t>(shape.n_granules * all.row_bytes), nullptr, n}, first, lane);
        float sum[groups][4] = {};
        sum_any_tile<groups>(shape.down_type, task.data + shape.down_offset, static_cast<int>(shape.granule), tile, x, lane, sum);
        const bool is_last = t + 1 == run.first + run.count;
        for (int g = 0; g < groups; ++g) {
            for (int i = 0; i < 4; ++i) {
                const int token = first + 8 * g + 2 * lane.c + i % 2;
                const int row = tile * ops::kTileRows + 2 * lane.g + i / 2;
                if (token >= n || row >= shape.n_embd) continue;
                float* y = job.partials + (task.first_entry + token) * shape.n_embd + row;
                if (task.granule == 0)
                    total[g][i] = sum[g][i];
                else
                    total[g][i] = (t == run.first ? *y : total[g][i]) + sum[g][i];
                if (is_last) *y = total[g][i];
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
    IntermediateJob all{job, kind == ops::ActKind::q8_256 ? 256 : 32, 0, static_cast<int32_t>(kind), row_bytes(job.shape), 0};
    all.n_widths = static_cast<int32_t>((job.shape.granule + all.width - 1) / all.width);
    all.part_bytes = kind == ops::ActKind::q8_256  ? sizeof(ops::Act256)
                     : kind == ops::ActKind::q8_32 ? sizeof(ops::Act32)
                                                   : 32 * sizeof(float);
    const auto run = [&](auto kernel, int groups, int most_threads) {
        const dim3 grid(static_cast<unsigned>(job.n_tasks * all.n_widths), entry_blocks(job, groups));
        const int threads = std::min(most_threads, 2 * all.width / ops::kTileRows * 32);
        const size_t shared = sizeof(float) * 2 * 8 * static_cast<size_t>(groups * all.width);
        return launch(kernel, grid, dim3(static_cast<unsigned>(threads)), shared, stream, all);
    };
    if (job.most_entries <= kFewEntries) return run(intermediate_kernel<kFewGroups>, kFewGroups, kIntermediateThreads<kFewGroups>);
    return run(intermediate_kernel<kManyGroups>, kManyGroups, kIntermediateThreads<kManyGroups>);
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
    const int groups = job.most_entries <= kFewEntries ? kFewGroups : kManyGroups;
    const dim3 grid(static_cast<unsigned>(job.n_runs * all.n_parts), entry_blocks(job, groups));
    return launch(groups == kFewGroups ? down_many_kernel<kFewGroups> : down_many_kernel<kManyGroups>, grid, dim3(kSplitThreads), 0, stream,
                  all);
}

}  // namespace moepic::device
