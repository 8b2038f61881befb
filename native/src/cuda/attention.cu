// Causal attention over the KV cache, with the arithmetic that ops/cpu/attention.cpp states: chunks of 256 positions that know nothing of
// each other, joined in ascending order.
//   q [n][n_head * head_dim_k] f32, keys and values f16 or q8_0 (ops/cpu/kv_layout.h), out [n][n_head * head_dim_v] f32
//
// Query heads of one KV head times tokens are rows, heads fastest. A block of 256 threads takes R rows of a KV head along chunks:
//   scores   a thread is a position: its R chains over channels. A warp's load is 64 bytes of f16 from two blocks of positions; eight
//            channels of them are under way at once, 4 KiB a block of threads. The rows' queries are broadcast out of shared memory, four
//            channels a load.
//   weights  a warp is a row: maximum, exponentials, and the 16 partial denominators
//   outputs  a thread is a channel of 1, 2 or 4 rows: its chains over positions, 16 of them loaded at once
// Where there are few rows (decode), the work is split: every (rows of one token, chunk) is a block of its own that leaves what it found in
// scratch, and a second kernel joins it. Otherwise a block walks all the chunks its rows see, which may be of several tokens, and keeps the
// joined state in shared memory. Both do the same operations.
//
// Decode reads each key and value once per R rows: 4 head_dim bytes per position and KV head in f16, and bandwidth is the bound; an SM
// holds at least 3 blocks (80 registers a thread, 17 KiB of shared memory for 8 rows of 128 channels), so that 12 to 24 KiB are under way.
// Prefill does 4 head_dim flops per (row, position), and fused multiply-adds are the bound: no tensor core has these chains. Not measured.
#include <algorithm>

#include "cuda/attention.h"
#include "cuda/kv.cuh"

namespace moepic::device {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kChunk = ops::kKvChunk;
static_assert(kChunk == kThreads, "a thread is a position of a chunk");
constexpr int kBlock = ops::kKvBlock, kGroup = ops::kKvGroup, kGroupBytes = ops::kKvGroupBytes;
constexpr float kInfinity = __builtin_inff();
// Fewer blocks than this leave a device idle, and a chunk becomes a block.
constexpr int64_t kEnoughBlocks = 64;

// Of a (row, chunk) in scratch. Rows are those of out: token * n_head + head. Chunks count from the first that the first token sees.
struct Parts {
    float* top = nullptr;      // [rows][n_chunks]
    float* partial = nullptr;  // [rows][n_chunks][16], denominators by position % 16
    float* out = nullptr;      // [rows][n_chunks][head_dim_v]
    int64_t n_chunks = 0;      // room for so many
    __device__ int64_t at(int64_t row, int64_t index) const { return row * n_chunks + index; }
};

struct Args {
    AttentionJob job;
    KvBlocks keys, values;
    int group;         // query heads of a KV head
    int dim_k, dim_v;  // of a head
    int q_stride;      // floats of a query in shared memory, a multiple of 4
    Parts parts;       // where the work is split
};

// Positions [first, last) that a token sees, and their chunks, where the batch begins at first_pos.
struct Sight {
    const AttentionJob& job;
    int64_t first_pos;

    __host__ __device__ int64_t last(int64_t token) const { return first_pos + token + 1; }
    __host__ __device__ int64_t first(int64_t token) const {
        if (job.window <= 0) return 0;
        if (job.chunked) return (last(token) - 1) / job.window * job.window;
        return last(token) > job.window ? last(token) - job.window : 0;
    }
    __host__ __device__ int64_t first_chunk(int64_t token) const { return first(token) / kChunk; }
    __host__ __device__ int64_t last_chunk(int64_t token) const { return (last(token) - 1) / kChunk; }
};

// How a stored block becomes floats. Both are exact: a half widens, and an 8-bit code times a half has at most 19 significant bits.
struct HalfBlocks {
    __device__ static int group_len(int head_dim) { return head_dim; }  // one group: nothing is shared
    __device__ static float key_scale(const std::byte*, int) { return 1.0f; }
    __device__ static float key(const std::byte* group, int channel, int position, float) {
        return f_half(reinterpret_cast<const uint16_t*>(group)[channel * kBlock + position]);
    }
    __device__ static void values(const std::byte* block, int channel, float (&v)[kBlock]) {
        const uint16_t* const unit = reinterpret_cast<const uint16_t*>(block) + channel / 16 * kBlock * 16 + channel % 16;
#pragma unroll
        for (int p = 0; p < kBlock; ++p) v[p] = f_half(unit[p * 16]);
    }
};
struct CodeBlocks {
    __device__ static int group_len(int) { return kGroup; }
    __device__ static float key_scale(const std::byte* group, int position) {
        return f_half(reinterpret_cast<const uint16_t*>(group)[position]);
    }
    __device__ static float key(const std::byte* group, int channel, int position, float scale) {
        return static_cast<float>(reinterpret_cast<const int8_t*>(group)[2 * kBlock + channel * kBlock + position]) * scale;
    }
    __device__ static void values(const std::byte* block, int channel, float (&v)[kBlock]) {
        const std::byte* const group = block + channel / kGroup * kGroupBytes;
        const int in_group = channel % kGroup;
        const int8_t* const unit = reinterpret_cast<const int8_t*>(group) + 2 * kBlock + in_group / 16 * kBlock * 16 + in_group % 16;
#pragma unroll
        for (int p = 0; p < kBlock; p += 8) {
            const uint4 eight = *reinterpret_cast<const uint4*>(group + 2 * p);  // scales of 8 positions
            const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float scale = f_half(static_cast<uint16_t>(pairs[i / 2] >> (i % 2 * 16)));
                v[p + i] = static_cast<float>(unit[(p + i) * 16]) * scale;
            }
        }
    }
};

// The shared memory of a block with R rows. What has a fixed size comes first, so that addresses are constants and not registers.
template <int R>
struct Shared {
    int q_stride;

    __device__ static float* weights() { return shared_memory<float>(); }            // [R][kChunk]; scores, then weights
    __device__ static float* partial() { return weights() + R * kChunk; }            // [R][16], joined; only where not split
    __device__ static float* top() { return partial() + R * 16; }                    // [R], the same
    __device__ static float* old_factor() { return top() + R; }                      // [R], what joins a chunk
    __device__ static float* factor() { return old_factor() + R; }                   // [R]
    __device__ static int* begin() { return reinterpret_cast<int*>(factor() + R); }  // [R], visible positions of the chunk
    __device__ static int* end() { return begin() + R; }                             // [R]
    __device__ static float* q() { return weights() + kFixed; }                      // [R][q_stride], scaled
    __device__ float* out() const { return q() + R * q_stride; }                     // [R][head_dim_v], joined; only where not split

    static constexpr int kFixed = R * (kChunk + 16 + 8);  // a multiple of 4, as rows of q and weights are read by four
    static size_t bytes(int q_floats, int64_t head_dim_v) {
        return static_cast<size_t>(kFixed + R * (q_floats + head_dim_v)) * sizeof(float);
    }
};

// scores[r][position] of this thread's position: chains over channels ascending, from 0.
template <class Blocks, int R>
__device__ void score(const Args& args, const Shared<R>& shared, const std::byte* keys, int position) {
    float sum[R];
    for (int r = 0; r < R; ++r) sum[r] = 0.0f;
    const int dim = args.dim_k, len = Blocks::group_len(dim);
    const std::byte* group = keys + position / kBlock * args.keys.block_bytes;
    const int lane = position % kBlock;
    const float* q = shared.q();
    for (int begin = 0; begin < dim; begin += len, group += kGroupBytes, q += len) {
        const float scale = Blocks::key_scale(group, lane);
        int i = 0;
#pragma unroll 2
        for (; i + 4 <= len; i += 4) {
            float k[4];
            for (int j = 0; j < 4; ++j) k[j] = Blocks::key(group, i + j, lane, scale);
            for (int r = 0; r < R; ++r) {
                const float4 x = *reinterpret_cast<const float4*>(q + r * args.q_stride + i);
                sum[r] = __fmaf_rn(x.x, k[0], sum[r]);
                sum[r] = __fmaf_rn(x.y, k[1], sum[r]);
                sum[r] = __fmaf_rn(x.z, k[2], sum[r]);
                sum[r] = __fmaf_rn(x.w, k[3], sum[r]);
            }
        }
        for (; i < len; ++i) {
            const float k = Blocks::key(group, i, lane, scale);
            for (int r = 0; r < R; ++r) sum[r] = __fmaf_rn(q[r * args.q_stride + i], k, sum[r]);
        }
    }
    for (int r = 0; r < R; ++r) shared.weights()[r * kChunk + position] = sum[r];
}

// By a warp: scores of a row become weights, 0 where it sees nothing; answers their maximum and this lane's partial denominator.
struct Weighed {
    float top, partial;
};
__device__ Weighed weigh_row(float* scores, int begin, int end) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    float top = -kInfinity;
    for (int p = lane; p < kChunk; p += 32) {
        if (p >= begin && p < end) top = f_max(top, scores[p]);
    }
    for (int step = 16; step > 0; step /= 2) top = f_max(top, __shfl_xor_sync(kAllLanes, top, step));
    top = __shfl_sync(kAllLanes, top, 0);  // one answer for all, even of a NaN among numbers
    for (int p = lane; p < kChunk; p += 32) scores[p] = p >= begin && p < end ? f_exp(scores[p] - top) : 0.0f;
    __syncwarp();
    float partial = 0.0f;
    for (int p = lane % 16; p < kChunk; p += 16) partial = partial + scores[p];
    return {top, partial};
}

// Rows of a block: `n` from `first` on, of the tokens' rows for one KV head, heads fastest.
struct Rows {
    const Args& args;
    const Sight& sight;
    int kv_head, first, n;
    __device__ int64_t token(int row) const { return (first + row) / args.group; }
    __device__ int64_t head(int row) const { return kv_head * args.group + (first + row) % args.group; }
    __device__ int64_t of_all(int row) const { return token(row) * args.job.n_head + head(row); }
};

// By a block: scaled queries into shared memory. Rows that do not exist are zero, see what the last one sees, and go nowhere.
template <int R>
__device__ void load_queries(const Rows& rows, const Shared<R>& shared) {
    const Args& args = rows.args;
#pragma unroll 1
    for (int r = 0; r < R; ++r) {
        const float* const q = args.job.q + rows.of_all(r < rows.n ? r : 0) * args.dim_k;
        for (int d = static_cast<int>(threadIdx.x); d < args.dim_k; d += kThreads)
            shared.q()[r * args.q_stride + d] = r < rows.n ? q[d] * args.job.scale : 0.0f;
    }
}

// By a block: what the rows see of the chunk that begins at position `start`, and the scores of that.
template <class Blocks, int R>
__device__ void score_chunk(const Rows& rows, const Shared<R>& shared, int64_t start) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < R) {
        const int64_t token = rows.token(thread < rows.n ? thread : rows.n - 1);
        const int64_t begin = rows.sight.first(token) - start, end = rows.sight.last(token) - start;
        shared.begin()[thread] = static_cast<int>(begin < 0 ? 0 : begin > kChunk ? kChunk : begin);
        shared.end()[thread] = static_cast<int>(end < 0 ? 0 : end > kChunk ? kChunk : end);
    }
    __syncthreads();
    // Both ends ascend with the rows; behind the last there may be nothing to read.
    if (thread >= shared.begin()[0] && thread < shared.end()[R - 1])
        score<Blocks, R>(rows.args, shared, rows.args.keys.at(rows.kv_head, start), thread);
    __syncthreads();
}

// One row and 16 positions: the chain goes on with those of `visible`, a bit each.
__device__ float weigh_block(const float* weights, const float (&v)[kBlock], unsigned visible, float sum) {
#pragma unroll
    for (int p = 0; p < kBlock; p += 4) {
        const float4 x = *reinterpret_cast<const float4*>(weights + p);
        if (visible >> p & 1u) sum = __fmaf_rn(x.x, v[p], sum);
        if (visible >> p & 2u) sum = __fmaf_rn(x.y, v[p + 1], sum);
        if (visible >> p & 4u) sum = __fmaf_rn(x.z, v[p + 2], sum);
        if (visible >> p & 8u) sum = __fmaf_rn(x.w, v[p + 3], sum);
    }
    return sum;
}

// Bits of [0, 16) that lie in [begin, end).
__device__ unsigned bits_of(int begin, int end) {
    const unsigned below_end = end >= kBlock ? 0xffffu : end <= 0 ? 0u : (1u << end) - 1u;
    return begin <= 0 ? below_end : begin >= kBlock ? 0u : below_end & ~((1u << begin) - 1u);
}

// Outputs of the chunk for channel c of rows [row, row + W): chains over positions ascending, from 0. A position that a row does not see
// adds no step: 0 times an infinite stale value would be seen. Where all rows see the same (`alike`), its value becomes -0, whose product
// with the weight 0 is -0, and adding that changes no float, not even -0.
template <class Blocks, int R, int W, bool alike>
__device__ void weigh_values(const Args& args, const Shared<R>& shared, const std::byte* values, int c, int row, float (&sum)[W]) {
    const int *const begin = shared.begin() + row, *const end = shared.end() + row;
    const float* const weights = shared.weights() + row * kChunk;
    for (int w = 0; w < W; ++w) sum[w] = 0.0f;
    int start = begin[0] / kBlock * kBlock;
    values += start / kBlock * args.values.block_bytes;
    for (; start < end[W - 1]; start += kBlock, values += args.values.block_bytes) {
        float v[kBlock];
        Blocks::values(values, c, v);
        const bool is_whole = start >= begin[W - 1] && start + kBlock <= end[0];
        if (alike && !is_whole) {
            const unsigned visible = bits_of(begin[0] - start, end[0] - start);
#pragma unroll
            for (int p = 0; p < kBlock; ++p) v[p] = visible >> p & 1u ? v[p] : -0.0f;
        }
#pragma unroll
        for (int w = 0; w < W; ++w) {
            const unsigned visible = alike || is_whole ? 0xffffu : bits_of(begin[w] - start, end[w] - start);
            sum[w] = weigh_block(weights + w * kChunk + start, v, visible, sum[w]);
        }
    }
}

// Rows of one thread's outputs: few enough that every thread has work, and that nothing leaves the registers.
template <int R>
inline constexpr int kRowsTogether = R < 4    ? 1
                                     : R < 16 ? 2
                                              : 4;

// Each chunk of the rows of one token. Grid: (tokens times tiles of R heads, KV heads, chunks).
template <class Blocks, int R>
__global__ void __launch_bounds__(kThreads, R < 16 ? 3 : 2) split_kernel(Args args, int tiles) {
    constexpr int W = kRowsTogether<R>;
    const int token = static_cast<int>(blockIdx.x) / tiles, first_head = static_cast<int>(blockIdx.x) % tiles * R;
    const int n = args.group - first_head < R ? args.group - first_head : R;
    const Sight sight{args.job, args.job.place->first_pos};
    const Rows rows{args, sight, static_cast<int>(blockIdx.y), token * args.group + first_head, n};
    const Shared<R> shared{args.q_stride};
    const int64_t first_row = rows.of_all(0);  // those of one token follow each other
    const int64_t index = blockIdx.z, chunk = sight.first_chunk(0) + index;
    if (chunk < sight.first_chunk(token) || chunk > sight.last_chunk(token)) return;

    load_queries(rows, shared);
    score_chunk<Blocks, R>(rows, shared, chunk * kChunk);
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    for (int r = warp; r < n; r += kWarps) {
        const Weighed found = weigh_row(shared.weights() + r * kChunk, shared.begin()[r], shared.end()[r]);
        const int64_t at = args.parts.at(first_row + r, index);
        if (lane < 16) args.parts.partial[at * 16 + lane] = found.partial;
        if (lane == 0) args.parts.top[at] = found.top;
    }
    __syncthreads();

    const std::byte* const values = args.values.at(rows.kv_head, chunk * kChunk);
    for (int item = static_cast<int>(threadIdx.x); item < (n + W - 1) / W * args.dim_v; item += kThreads) {
        const int c = item % args.dim_v, row = item / args.dim_v * W;
        float sum[W];
        weigh_values<Blocks, R, W, true>(args, shared, values, c, row, sum);
        for (int w = 0; w < W && row + w < n; ++w) args.parts.out[args.parts.at(first_row + row + w, index) * args.dim_v + c] = sum[w];
    }
}

// By a warp: what a row's outputs are multiplied by at the end, from its largest score and (in each 16 lanes) its denominators.
__device__ float quotient(const AttentionJob& job, int64_t head, float top, float partial) {
    float total = sum_lanes(partial), alpha = 1.0f;
    if (job.sinks) {
        const float sink = job.sinks[head], largest = f_max(sink, top);
        alpha = f_exp(top - largest);
        total = __fmaf_rn(total, alpha, f_exp(sink - largest));
    }
    return alpha / total;
}

constexpr int kJoinWarps = 4;

// Joins the chunks of a row in ascending order. Grid: (rows, parts of head_dim_v); a lane is a channel of the output, and one of the 16
// denominators. The maxima of 32 chunks at a time are one scan, so that two exponentials a lane serve all of them.
__global__ void join_kernel(Args args) {
    const AttentionJob& job = args.job;
    const Sight sight{job, job.place->first_pos};
    const int lane = static_cast<int>(threadIdx.x % 32), dim = args.dim_v;
    const int64_t row = blockIdx.x, token = row / job.n_head;
    const int c = static_cast<int>(blockIdx.y * kJoinWarps * 32 + threadIdx.x);
    const int64_t first = sight.first_chunk(token) - sight.first_chunk(0), last = sight.last_chunk(token) - sight.first_chunk(0);
    float top = -kInfinity, partial = 0.0f, out = 0.0f;
    for (int64_t begin = first; begin <= last; begin += 32) {
        const float own_top = begin + lane <= last ? args.parts.top[args.parts.at(row, begin + lane)] : -kInfinity;
        float largest = own_top;  // becomes that of all chunks up to this lane's
        for (int step = 1; step < 32; step *= 2) {
            const float before = __shfl_up_sync(kAllLanes, largest, static_cast<unsigned>(step));
            if (lane >= step) largest = f_max(before, largest);
        }
        largest = f_max(top, largest);
        const float above = __shfl_up_sync(kAllLanes, largest, 1u), old_top = lane == 0 ? top : above;
        const float old_factor = f_exp(old_top - largest), factor = f_exp(own_top - largest);
        const int here = static_cast<int>(last - begin < 31 ? last - begin + 1 : 32);
#pragma unroll 4
        for (int j = 0; j < here; ++j) {
            const float a = __shfl_sync(kAllLanes, old_factor, j), b = __shfl_sync(kAllLanes, factor, j);
            const int64_t at = args.parts.at(row, begin + j);
            partial = __fmaf_rn(args.parts.partial[at * 16 + lane % 16], b, partial * a);
            if (c < dim) out = __fmaf_rn(args.parts.out[at * dim + c], b, out * a);
        }
        top = __shfl_sync(kAllLanes, largest, here - 1);
    }
    const float factor = quotient(job, row % job.n_head, top, partial);
    if (c < dim) job.out[row * dim + c] = out * factor;
}

// All chunks of R rows. Grid: (tiles of rows, KV heads).
template <class Blocks, int R>
__global__ void __launch_bounds__(kThreads, 2) walk_kernel(Args args) {
    constexpr int W = kRowsTogether<R>;
    const AttentionJob& job = args.job;
    // Later tokens see more: their blocks start first, so that the last to start are short.
    const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * R, all = static_cast<int>(job.n) * args.group;
    const Sight sight{job, job.place->first_pos};
    const Rows rows{args, sight, static_cast<int>(blockIdx.y), first, all - first < R ? all - first : R};
    const Shared<R> shared{args.q_stride};
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, dim = args.dim_v;
    const auto is_seen = [&](int r) { return r < rows.n && shared.begin()[r] < shared.end()[r]; };

    load_queries(rows, shared);
    for (int i = thread; i < R * dim; i += kThreads) shared.out()[i] = 0.0f;
    for (int i = thread; i < R * 16; i += kThreads) shared.partial()[i] = 0.0f;
    if (thread < R) shared.top()[thread] = -kInfinity;

    const int64_t last_chunk = sight.last_chunk(rows.token(rows.n - 1));
    for (int64_t chunk = sight.first_chunk(rows.token(0)); chunk <= last_chunk; ++chunk) {
        score_chunk<Blocks, R>(rows, shared, chunk * kChunk);
        for (int r = warp; r < rows.n; r += kWarps) {
            if (!is_seen(r)) continue;
            const Weighed found = weigh_row(shared.weights() + r * kChunk, shared.begin()[r], shared.end()[r]);
            const float old_top = shared.top()[r], top = f_max(old_top, found.top);
            const float old_factor = f_exp(old_top - top), factor = f_exp(found.top - top);
            __syncwarp();  // all have read the old maximum
            float& partial = shared.partial()[r * 16 + lane % 16];
            if (lane < 16) partial = __fmaf_rn(found.partial, factor, partial * old_factor);
            if (lane == 0) {
                shared.top()[r] = top;
                shared.old_factor()[r] = old_factor;
                shared.factor()[r] = factor;
            }
        }
        __syncthreads();

        const std::byte* const values = args.values.at(rows.kv_head, chunk * kChunk);
        for (int item = thread; item < (rows.n + W - 1) / W * dim; item += kThreads) {
            const int c = item % dim, row = item / dim * W;
            float sum[W];
            weigh_values<Blocks, R, W, false>(args, shared, values, c, row, sum);
            for (int w = 0; w < W; ++w) {
                if (!is_seen(row + w)) continue;
                float& out = shared.out()[(row + w) * dim + c];
                out = __fmaf_rn(sum[w], shared.factor()[row + w], out * shared.old_factor()[row + w]);
            }
        }
        __syncthreads();
    }
    for (int r = warp; r < rows.n; r += kWarps) {
        const float factor = quotient(job, rows.head(r), shared.top()[r], shared.partial()[r * 16 + lane % 16]);
        float* const out = job.out + rows.of_all(r) * dim;
        for (int c = lane; c < dim; c += 32) out[c] = shared.out()[r * dim + c] * factor;
    }
}

int query_stride(const ops::KvView& kv) {
    return static_cast<int>((kv.head_dim_k + 3) / 4 * 4);
}

// Rows of a block: as many as there are, while the shared memory is what every device gives unasked.
int rows_of_block(const ops::KvView& kv, int64_t all_rows) {
    const auto fits = [&](auto shared) { return shared.bytes(query_stride(kv), kv.head_dim_v) <= kUnaskedSharedBytes; };
    if (all_rows > 8 && fits(Shared<16>{})) return 16;
    if (all_rows > 4 && fits(Shared<8>{})) return 8;
    return all_rows > 1 && fits(Shared<4>{}) ? 4 : 1;
}

// Blocks of n tokens that walk all chunks.
int64_t blocks_of(const ops::KvView& kv, int64_t n, int64_t n_head) {
    const int64_t rows = n * (n_head / kv.n_head_kv), together = rows_of_block(kv, rows);
    return (rows + together - 1) / together * kv.n_head_kv;
}

size_t part_bytes(const ops::KvView& kv) {
    return static_cast<size_t>(kv.head_dim_v + 16 + 1) * sizeof(float);
}

template <class Blocks, int R>
int32_t run(const Args& args, int64_t n_chunks, Stream stream) {
    const int64_t n = args.job.n, rows = n * args.group, tiles = (args.group + R - 1) / R;
    const auto n_head_kv = static_cast<unsigned>(args.job.kv.n_head_kv);
    const size_t bytes = Shared<R>::bytes(args.q_stride, args.dim_v);
    if (n_chunks == 0) {
        const dim3 grid(static_cast<unsigned>((rows + R - 1) / R), n_head_kv);
        return launch(walk_kernel<Blocks, R>, grid, dim3(kThreads), bytes, stream, args);
    }
    const dim3 grid(static_cast<unsigned>(n * tiles), n_head_kv, static_cast<unsigned>(n_chunks));
    return launch(split_kernel<Blocks, R>, grid, dim3(kThreads), bytes, stream, args, static_cast<int>(tiles));
}

// n_chunks: into how many the work is split; 0: it is not.
template <class Blocks>
int32_t run(const Args& args, int64_t n_chunks, Stream stream) {
    switch (rows_of_block(args.job.kv, n_chunks ? args.group : args.group * args.job.n)) {
        case 1:
            return run<Blocks, 1>(args, n_chunks, stream);
        case 4:
            return run<Blocks, 4>(args, n_chunks, stream);
        case 8:
            return run<Blocks, 8>(args, n_chunks, stream);
        default:
            return run<Blocks, 16>(args, n_chunks, stream);
    }
}

}  // namespace

// The most that any number of tokens up to n wants.
size_t attention_scratch(const ops::KvView& kv, int64_t n, int64_t n_head) {
    int64_t most = 0;
    while (most < n && blocks_of(kv, most + 1, n_head) < kEnoughBlocks) ++most;
    // Positions that are held may begin and end inside a chunk.
    const int64_t chunks = (kv.capacity + kChunk - 1) / kChunk + 1;
    return static_cast<size_t>(most * n_head * chunks) * part_bytes(kv);
}

int32_t attention(const AttentionJob& job, Stream stream) {
    if (job.n == 0) return kOk;
    Args args{};
    args.job = job;
    args.keys = key_blocks(job.kv);
    args.values = value_blocks(job.kv);
    args.group = static_cast<int>(job.n_head / job.kv.n_head_kv);
    args.dim_k = static_cast<int>(job.kv.head_dim_k);
    args.dim_v = static_cast<int>(job.kv.head_dim_v);
    args.q_stride = query_stride(job.kv);

    Parts& parts = args.parts;
    parts.n_chunks = Sight{job, job.highest_pos}.last_chunk(job.n - 1) - Sight{job, job.lowest_pos}.first_chunk(0) + 1;
    const int64_t n_rows = job.n * job.n_head, n_parts = n_rows * parts.n_chunks;
    const bool is_split =
        blocks_of(job.kv, job.n, job.n_head) < kEnoughBlocks && static_cast<size_t>(n_parts) * part_bytes(job.kv) <= job.scratch_bytes;
    parts.top = reinterpret_cast<float*>(job.scratch);
    parts.partial = parts.top + n_parts;
    parts.out = parts.partial + n_parts * 16;

    const auto run_type = job.kv.type == ops::KvType::f16 ? run<HalfBlocks> : run<CodeBlocks>;
    const int32_t code = run_type(args, is_split ? parts.n_chunks : 0, stream);
    if (code != kOk || !is_split) return code;
    constexpr unsigned kJoined = kJoinWarps * 32;
    const dim3 grid(static_cast<unsigned>(n_rows), (static_cast<unsigned>(args.dim_v) + kJoined - 1) / kJoined);
    return launch(join_kernel, grid, dim3(kJoined), 0, stream, args);
}

}  // namespace moepic::device
