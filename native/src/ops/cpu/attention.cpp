// out[t][h] = sum_p softmax_p(scale q[t][h] . k[p]) v[p] over positions p <= first_pos + t (and inside the sliding window), per query head.
//   q [n_tokens][n_head * head_dim_k] f32    keys, values f16 or q8_0 in blocks of 16 positions (kv_layout.h)    out f32
//
// Decode reads each key and value once per KV head: memory bandwidth is the bound (4 head_dim bytes per position and KV head in f16).
// Prefill does 4 head_dim flops per (token, head, position) on data in L1 and L2: fused multiply-adds are the bound.
//
// Arithmetic of one (token, head), the same whatever is computed beside it:
//   q is multiplied by scale; a score is the chain of fused multiply-adds over channels ascending, from 0
//   positions fall into chunks of 256, counted from position 0. A chunk knows nothing of the others: its own maximum m_c, weights
//   e^(s - m_c), 16 partial denominators l_c (position p adds to partial p % 16), and per output channel o_c, the chain of fused
//   multiply-adds over its positions ascending; both from 0
//   chunks join in ascending order, from m = -inf, l = 0, o = 0:  m' = max(m, m_c), a = e^(m - m'), b = e^(m_c - m'),
//   l = fma(l_c, b, l a), o = fma(o_c, b, o a)
//   at the end the sink joins max and denominator, the partials are summed by a fixed tree, outputs are multiplied by 1 / sum
// So the chunks of a long context can be computed anywhere, each by a thread or a device's block of threads, and give the same bits.
// A masked position adds a weight of exactly 0 to the denominator and no step to the outputs (0 * v would spread an infinite stale v), and
// a chunk with no visible position does not exist, so skipping what a window hides changes nothing.
//
// Shape of the work: query heads of one KV head times tokens are rows. Up to 32 rows walk a chunk together (keys and values come from DRAM
// once); up to kRows of them share registers, so a key or value is loaded and widened once per kRows rows.
#include "ops/cpu/attention.h"

#include "ops/cpu/math.h"

#if MOEPIC_SIMD_SCALAR
namespace moepic::ops {
// Needs no lanes, so the portable build, which is always there, defines it.
size_t kv_bytes(KvType type, int64_t n_head_kv, int64_t head_dim, int64_t capacity) noexcept {
    return static_cast<size_t>(n_head_kv * (capacity / kKvBlock) * kv_block_bytes(type, head_dim));
}
}  // namespace moepic::ops
#endif

namespace moepic::ops::MOEPIC_ISA {
namespace {

constexpr int64_t kChunk = kKvChunk;
constexpr int64_t kChunkBlocks = kChunk / kKvBlock;
constexpr int64_t kMostRows = 32;  // rows that walk a chunk together; not part of the arithmetic

// Register blocking, not part of the arithmetic: rows at once, and accumulators of 16 lanes at once. 16 of 32 registers leave room for
// operands and cover 4 cycles of latency at 2 per cycle; AVX2 has 16 registers and needs two per vector.
#if MOEPIC_SIMD_AVX512
constexpr int kRows = 8;
constexpr int kAccumulators = 16;
#else
constexpr int kRows = 4;
constexpr int kAccumulators = 4;
#endif

inline constexpr int64_t min_of(int64_t a, int64_t b) {
    return a < b ? a : b;
}
inline constexpr int64_t max_of(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// Vectors at once beside R rows.
template <int R>
inline constexpr int kWide = kAccumulators / R >= 8   ? 8
                             : kAccumulators / R >= 4 ? 4
                             : kAccumulators / R >= 2 ? 2
                                                      : 1;

// How a stored block becomes floats. Both are exact: a half widens, and an 8-bit code times a half has at most 19 significant bits.
struct HalfBlocks {
    static constexpr int64_t kPerLine = 2;  // vectors per cache line
    using KeyScale = struct {};
    static int64_t group_len(int64_t head_dim) { return head_dim; }  // one group: nothing is shared
    static KeyScale key_scale(const std::byte*) { return {}; }
    static F16x key(const std::byte* group, int64_t channel, KeyScale) {
        return f_load_half(reinterpret_cast<const uint16_t*>(group) + channel * kKvBlock);
    }
    using ValueScale = struct {};
    static ValueScale value_scale(const std::byte*, int64_t) { return {}; }
    static const std::byte* unit(const std::byte* block, int64_t u) { return block + u * kKvUnit * kKvBlock * 2; }
    static F16x value(const std::byte* unit, int64_t p, const ValueScale&) {
        return f_load_half(reinterpret_cast<const uint16_t*>(unit) + p * kKvUnit);
    }
};

struct Q8Blocks {
    static constexpr int64_t kPerLine = 4;
    using KeyScale = F16x;
    static int64_t group_len(int64_t) { return kKvGroup; }
    static KeyScale key_scale(const std::byte* group) { return f_load_half(reinterpret_cast<const uint16_t*>(group)); }
    static F16x key(const std::byte* group, int64_t channel, KeyScale scale) {
        return f_load_i8(reinterpret_cast<const int8_t*>(group) + 2 * kKvBlock + channel * kKvBlock) * scale;
    }
    struct ValueScale {
        float of[kKvBlock];
    };
    static ValueScale value_scale(const std::byte* block, int64_t u) {
        ValueScale scale;
        f_store(scale.of, f_load_half(reinterpret_cast<const uint16_t*>(block + u / 2 * kKvGroupBytes)));
        return scale;
    }
    static const std::byte* unit(const std::byte* block, int64_t u) {
        return block + u / 2 * kKvGroupBytes + 2 * kKvBlock + (u % 2) * kKvUnit * kKvBlock;
    }
    static F16x value(const std::byte* unit, int64_t p, const ValueScale& scale) {
        return f_load_i8(reinterpret_cast<const int8_t*>(unit) + p * kKvUnit) * f_set(scale.of[p]);
    }
};

// What a tile of rows keeps in scratch. Rows are (token, head of the group), heads fastest, so positions ascend with rows.
struct Tile {
    int64_t rows = 0;
    int64_t heads = 0;               // of this KV head, in this job
    int64_t head_begin = 0;          // first of them
    int64_t first_row = 0;           // of this tile, counted from token_begin
    float* q = nullptr;              // [rows / kRows][head_dim_k][kRows], scaled
    float* scores = nullptr;         // [kRows][kChunk]; scores, then weights
    float* out = nullptr;            // [rows][units * 16]
    float* partial = nullptr;        // [rows][16], denominators by lane
    float top[kMostRows];            // largest score so far
    float* chunk_out = nullptr;      // [kRows][units * 16], of the chunk at hand; so the next two
    float* chunk_partial = nullptr;  // [kRows][16]
    float chunk_top[kRows];

    int64_t token(const AttentionJob& job, int64_t row) const { return job.token_begin + (first_row + row) / heads; }
    int64_t head(int64_t row) const { return head_begin + (first_row + row) % heads; }
    // Positions [first, last) that a row sees.
    int64_t last(const AttentionJob& job, int64_t row) const { return job.first_pos + token(job, row) + 1; }
    int64_t first(const AttentionJob& job, int64_t row) const { return first_seen(last(job, row) - 1, job.window, job.chunked); }
};

inline int64_t unit_count(const KvView& kv) {
    return (kv.head_dim_v + kKvUnit - 1) / kKvUnit;
}

// Rows that fit the scratch, a multiple of kRows (kRows of them fit up to head dims of some 2600).
inline int64_t rows_that_fit(const KvView& kv) {
    const int64_t out_floats = unit_count(kv) * kKvUnit + kLanes;
    const int64_t floats = static_cast<int64_t>(kAttentionScratchBytes / sizeof(float)) - kRows * (kChunk + out_floats);
    const int64_t fit = floats / (kv.head_dim_k + out_floats) / kRows * kRows;
    return max_of(kRows, min_of(kMostRows, fit));
}

// A hardware prefetcher stops at each 4 KiB page, which one block of 128 channels fills; so while keys of a chunk are read, its values are
// called into L2 at the same pace, and meanwhile values the keys of the next chunk. Never faults, so it may point behind the end.
inline void call_in(const std::byte* p) {
    __builtin_prefetch(p, 0, 2);
}

// Scores of R rows against NB blocks of keys, block_bytes apart. q [head_dim][kRows], scores [R][kChunk]. `ahead`: what to call in,
// ahead_bytes apart.
template <class Blocks, int R, int NB>
inline void score_blocks(const std::byte* keys, int64_t block_bytes, int64_t head_dim, const float* q, float* scores,
                         const std::byte* ahead, int64_t ahead_bytes) {
    F16x sum[R][NB];
    for (int r = 0; r < R; ++r) {
        for (int b = 0; b < NB; ++b) sum[r][b] = f_set(0.0f);
    }
    const int64_t len = Blocks::group_len(head_dim);
    for (int64_t begin = 0; begin < head_dim; begin += len, keys += kKvGroupBytes, ahead += kKvGroupBytes) {
        typename Blocks::KeyScale scale[NB];
        for (int b = 0; b < NB; ++b) scale[b] = Blocks::key_scale(keys + b * block_bytes);
        for (int64_t i = 0; i < len; ++i, q += kRows) {
            if (i % Blocks::kPerLine == 0) {
                for (int b = 0; b < NB; ++b) call_in(ahead + b * ahead_bytes + i / Blocks::kPerLine * 64);
            }
            F16x k[NB];
#pragma GCC unroll 8
            for (int b = 0; b < NB; ++b) k[b] = Blocks::key(keys + b * block_bytes, i, scale[b]);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const F16x x = f_set(q[r]);
#pragma GCC unroll 8
                for (int b = 0; b < NB; ++b) sum[r][b] = f_fma(x, k[b], sum[r][b]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int b = 0; b < NB; ++b) f_store(scores + r * kChunk + b * kKvBlock, sum[r][b]);
    }
}

// out[r][unit] += sum over positions [begin, end) of one block of weight * value, for NU units from `u`.
template <class Blocks, int R, int NU>
inline void weigh_units(const std::byte* block, int64_t u, int64_t begin, int64_t end, const float* weights, float* out, int64_t out_stride,
                        const std::byte* ahead) {
    F16x sum[R][NU];
    const std::byte* unit[NU];
    typename Blocks::ValueScale scale[NU];
    for (int c = 0; c < NU; ++c) {
        unit[c] = Blocks::unit(block, u + c);
        scale[c] = Blocks::value_scale(block, u + c);
        for (int r = 0; r < R; ++r) sum[r][c] = f_load(out + r * out_stride + (u + c) * kKvUnit);
    }
    for (int64_t p = begin; p < end; ++p) {
        if (p % Blocks::kPerLine == 0) {
            for (int c = 0; c < NU; ++c) call_in(Blocks::unit(ahead, u + c) + p / Blocks::kPerLine * 64);
        }
        F16x v[NU];
#pragma GCC unroll 8
        for (int c = 0; c < NU; ++c) v[c] = Blocks::value(unit[c], p, scale[c]);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const F16x w = f_set(weights[r * kChunk + p]);
#pragma GCC unroll 8
            for (int c = 0; c < NU; ++c) sum[r][c] = f_fma(w, v[c], sum[r][c]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < NU; ++c) f_store(out + r * out_stride + (u + c) * kKvUnit, sum[r][c]);
    }
}

// The work of R rows on one chunk, as plain data so that R can be a template argument chosen at run time.
template <class Blocks>
struct Chunk {
    const AttentionJob& job;
    const std::byte* keys;  // of the chunk's first block
    const std::byte* values;
    int64_t key_bytes, value_bytes;  // of a block
    int64_t units;

    template <int R>
    void score(int64_t block_begin, int64_t block_end, const float* q, float* scores) const {
        constexpr int wide = kWide<R>;
        const int64_t dim = job.kv.head_dim_k;
        int64_t b = block_begin;
        for (; b + wide <= block_end; b += wide) {
            score_blocks<Blocks, R, wide>(keys + b * key_bytes, key_bytes, dim, q, scores + b * kKvBlock, values + b * value_bytes,
                                          value_bytes);
        }
        for (; b < block_end; ++b) {
            score_blocks<Blocks, R, 1>(keys + b * key_bytes, key_bytes, dim, q, scores + b * kKvBlock, values + b * value_bytes,
                                       value_bytes);
        }
    }

    // Positions [begin, end) of the chunk.
    template <int R>
    void weigh(int64_t begin, int64_t end, const float* weights, float* out) const {
        constexpr int wide = kWide<R>;
        while (begin < end) {
            const int64_t b = begin / kKvBlock;
            const int64_t from = begin % kKvBlock, to = min_of(kKvBlock, end - b * kKvBlock);
            const std::byte* block = values + b * value_bytes;
            const std::byte* ahead = keys + (kChunkBlocks + b) * key_bytes;
            const float* w = weights + b * kKvBlock;
            int64_t u = 0;
            for (; u + wide <= units; u += wide) weigh_units<Blocks, R, wide>(block, u, from, to, w, out, units * kKvUnit, ahead);
            for (; u < units; ++u) weigh_units<Blocks, R, 1>(block, u, from, to, w, out, units * kKvUnit, ahead);
            begin = (b + 1) * kKvBlock;
        }
    }
};

// Scores of positions [begin, end) of a chunk become weights e^(s - top), summed by lane into `partial`; answers their maximum, top.
inline float weights_from_scores(float* scores, int64_t begin, int64_t end, float* partial) {
    const int64_t first = begin / kKvBlock * kKvBlock, last = (end + kKvBlock - 1) / kKvBlock * kKvBlock;
    for (int64_t p = first; p < begin; ++p) scores[p] = -kInfinity;
    for (int64_t p = end; p < last; ++p) scores[p] = -kInfinity;
    F16x largest = f_set(-kInfinity);
    for (int64_t p = first; p < last; p += kLanes) largest = f_max(largest, f_load(scores + p));
    const float top = max_lanes(largest);

    F16x sum = f_set(0.0f);
    const F16x shift = f_set(top);
    for (int64_t p = first; p < last; p += kLanes) {
        const F16x weight = f_exp(f_load(scores + p) - shift);
        f_store(scores + p, weight);
        sum = sum + weight;
    }
    f_store(partial, sum);
    return top;
}

// A chunk joins row `row` of the tile.
inline void join_chunk(Tile& tile, int64_t row, float chunk_top, const float* chunk_partial, const float* chunk_out, int64_t units) {
    const float top = tile.top[row] > chunk_top ? tile.top[row] : chunk_top;
    const F16x old_factor = f_exp(f_set(tile.top[row] - top)), factor = f_exp(f_set(chunk_top - top));
    const auto join = [&](float* to, const float* from) { f_store(to, f_fma(f_load(from), factor, f_load(to) * old_factor)); };
    join(tile.partial + row * kLanes, chunk_partial);
    for (int64_t u = 0; u < units; ++u) join(tile.out + (row * units + u) * kKvUnit, chunk_out + u * kKvUnit);
    tile.top[row] = top;
}

// Where split work leaves a chunk of a row: outputs, denominators, maximum (in each lane).
inline float* part_of(const AttentionJob& job, const Tile& tile, int64_t row, int64_t chunk) {
    const int64_t index = (tile.token(job, row) * job.n_head + tile.head(row)) * job.n_chunks + chunk - job.first_chunk;
    return job.parts + index * attention_part_floats(job.kv.head_dim_v);
}

// Rows [row, row + R) of a tile on the chunk that starts at position `start`.
template <class Blocks, int R>
void walk_chunk(const Chunk<Blocks>& chunk, Tile& tile, int64_t row, int64_t start) {
    const AttentionJob& job = chunk.job;
    const int64_t width = chunk.units * kKvUnit;
    float* const scores = tile.scores;
    float* const out = tile.chunk_out;

    // Seen by any of the rows, and by all of them, relative to the chunk. Both ends ascend with the rows.
    int64_t begin[R], end[R];
    for (int r = 0; r < R; ++r) {
        begin[r] = max_of(0, tile.first(job, row + r) - start);
        end[r] = min_of(kChunk, tile.last(job, row + r) - start);
    }
    const int64_t any_begin = begin[0], any_end = end[R - 1];
    if (any_begin >= any_end) return;
    const float* q = tile.q + row * job.kv.head_dim_k;
    chunk.template score<R>(any_begin / kKvBlock, (any_end + kKvBlock - 1) / kKvBlock, q, scores);
    for (int r = 0; r < R; ++r) {
        if (begin[r] < end[r])
            tile.chunk_top[r] = weights_from_scores(scores + r * kChunk, begin[r], end[r], tile.chunk_partial + r * kLanes);
    }

    for (int64_t i = 0; i < R * width; i += kLanes) f_store(out + i, f_set(0.0f));
    const int64_t all_begin = begin[R - 1], all_end = end[0];
    if (R == 1 || all_begin >= all_end) {
        for (int r = 0; r < R; ++r) chunk.template weigh<1>(begin[r], end[r], scores + r * kChunk, out + r * width);
    } else {
        for (int r = 0; r < R; ++r) chunk.template weigh<1>(begin[r], all_begin, scores + r * kChunk, out + r * width);
        chunk.template weigh<R>(all_begin, all_end, scores, out);
        for (int r = 0; r < R; ++r) chunk.template weigh<1>(all_end, end[r], scores + r * kChunk, out + r * width);
    }
    for (int r = 0; r < R; ++r) {
        if (begin[r] >= end[r]) continue;
        const float *const partial = tile.chunk_partial + r * kLanes, *const from = out + r * width;
        if (job.parts == nullptr) {
            join_chunk(tile, row + r, tile.chunk_top[r], partial, from, chunk.units);
        } else {
            float* const part = part_of(job, tile, row + r, job.chunk);
            std::memcpy(part, from, static_cast<size_t>(width) * sizeof(float));
            std::memcpy(part + width, partial, kLanes * sizeof(float));
            f_store(part + width + kLanes, f_set(tile.chunk_top[r]));
        }
    }
}

template <class Blocks>
void walk_chunk(const Chunk<Blocks>& chunk, Tile& tile, int64_t row, int64_t rows, int64_t start) {
    switch (rows) {
        case 1:
            return walk_chunk<Blocks, 1>(chunk, tile, row, start);
        case 2:
            return walk_chunk<Blocks, 2>(chunk, tile, row, start);
        case 3:
            return walk_chunk<Blocks, 3>(chunk, tile, row, start);
#if MOEPIC_SIMD_AVX512
        case 4:
            return walk_chunk<Blocks, 4>(chunk, tile, row, start);
        case 5:
            return walk_chunk<Blocks, 5>(chunk, tile, row, start);
        case 6:
            return walk_chunk<Blocks, 6>(chunk, tile, row, start);
        case 7:
            return walk_chunk<Blocks, 7>(chunk, tile, row, start);
#endif
        default:
            return walk_chunk<Blocks, kRows>(chunk, tile, row, start);
    }
}

// Scaled queries, transposed so that one load per channel serves kRows rows.
void load_queries(const AttentionJob& job, const Tile& tile) {
    const int64_t dim = job.kv.head_dim_k;
    for (int64_t row = 0; row < tile.rows; ++row) {
        const float* q = job.q + (tile.token(job, row) * job.n_head + tile.head(row)) * dim;
        float* const to = tile.q + row / kRows * kRows * dim + row % kRows;
        for (int64_t d = 0; d < dim; ++d) to[d * kRows] = q[d] * job.scale;
    }
}

// No chunk has joined yet.
void begin_tile(Tile& tile, int64_t units) {
    for (int64_t row = 0; row < tile.rows; ++row) {
        for (int64_t u = 0; u < units; ++u) f_store(tile.out + (row * units + u) * kKvUnit, f_set(0.0f));
        f_store(tile.partial + row * kLanes, f_set(0.0f));
        tile.top[row] = -kInfinity;
    }
}

// The sink joins, sums become quotients, rows go to job.out.
void end_tile(const AttentionJob& job, Tile& tile, int64_t units) {
    const int64_t dim = job.kv.head_dim_v;
    for (int64_t row = 0; row < tile.rows; ++row) {
        float total = sum_lanes(f_load(tile.partial + row * kLanes));
        float alpha = 1.0f;
        if (job.sinks != nullptr) {
            const float sink = job.sinks[tile.head(row)];
            const float top = sink > tile.top[row] ? sink : tile.top[row];
            alpha = exp_one(tile.top[row] - top);
            total = std::fma(total, alpha, exp_one(sink - top));
        }
        const F16x factor = f_set(alpha / total);
        const float* from = tile.out + row * units * kKvUnit;
        float* to = job.out + (tile.token(job, row) * job.n_head + tile.head(row)) * dim;
        int64_t d = 0;
        for (; d + kKvUnit <= dim; d += kKvUnit) f_store(to + d, f_load(from + d) * factor);
        if (d < dim) f_store_some(to + d, dim - d, f_load(from + d) * factor);
    }
}

// body(tile), for tiles that make up the job, with places in its scratch.
template <class Body>
void each_tile(const AttentionJob& job, Body body) {
    const int64_t units = unit_count(job.kv), group = job.n_head / job.kv.n_head_kv, most_rows = rows_that_fit(job.kv);
    Tile tile;
    tile.scores = reinterpret_cast<float*>(job.scratch);  // first: every part stays 64-byte aligned where its rows are
    tile.chunk_out = tile.scores + kRows * kChunk;
    tile.chunk_partial = tile.chunk_out + kRows * units * kKvUnit;
    tile.out = tile.chunk_partial + kRows * kLanes;
    tile.partial = tile.out + most_rows * units * kKvUnit;
    tile.q = tile.partial + most_rows * kLanes;
    for (int64_t head = job.head_begin; head < job.head_end; head = tile.head_begin + tile.heads) {
        tile.head_begin = head;
        tile.heads = min_of(job.head_end, (head / group + 1) * group) - head;
        const int64_t all_rows = tile.heads * (job.token_end - job.token_begin);
        for (tile.first_row = 0; tile.first_row < all_rows; tile.first_row += tile.rows) {
            tile.rows = min_of(most_rows, all_rows - tile.first_row);
            body(tile);
        }
    }
}

template <class Blocks>
void attend(const AttentionJob& job) {
    const KvView& kv = job.kv;
    const int64_t units = unit_count(kv);
    each_tile(job, [&](Tile& tile) {
        const int64_t kv_head = tile.head_begin / (job.n_head / kv.n_head_kv);
        load_queries(job, tile);
        begin_tile(tile, units);
        // Positions that any row sees, or those of one chunk.
        int64_t start = tile.first(job, 0) / kChunk * kChunk, end = tile.last(job, tile.rows - 1);
        if (job.parts != nullptr) {
            start = max_of(start, job.chunk * kChunk);
            end = min_of(end, (job.chunk + 1) * kChunk);
        }
        for (; start < end; start += kChunk) {
            const Chunk<Blocks> chunk{job,
                                      kv_block(kv.keys, kv.type, kv.head_dim_k, kv.capacity, kv_head, start),
                                      kv_block(kv.values, kv.type, kv.head_dim_v, kv.capacity, kv_head, start),
                                      kv_block_bytes(kv.type, kv.head_dim_k),
                                      kv_block_bytes(kv.type, kv.head_dim_v),
                                      units};
            for (int64_t row = 0; row < tile.rows; row += kRows) {
                walk_chunk(chunk, tile, row, min_of(kRows, tile.rows - row), start);
            }
        }
        if (job.parts == nullptr) end_tile(job, tile, units);
    });
}

// 16 floats as halves.
inline void to_halves(const float* x, int64_t n, uint16_t* out) {
    f_store_half(out, n >= kLanes ? f_load(x) : f_load_some(x, n, 0.0f));
}

// 32 floats as int8 codes times one half: d = max |x| / 127 rounded to half, code = round(x / d). A value that is not finite makes the
// scale NaN, so it is seen in the output instead of being clipped; a scale beyond the largest half saturates.
inline uint16_t to_codes(const float* x, int8_t* codes) {
    const F16x a = f_load(x), b = f_load(x + kLanes);
    const float largest = max_lanes(f_max(f_abs(a), f_abs(b)));
    const float poison = sum_lanes(a * f_set(0.0f) + b * f_set(0.0f));  // 0, or NaN
    uint16_t halves[kLanes];
    const float wanted = largest / 127.0f;
    f_store_half(halves, f_set((wanted < 65504.0f ? wanted : 65504.0f) + poison));
    const float d = first_lane(f_load_half(halves));
    const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
    for (int part = 0; part < 2; ++part) {
        const F16x scaled = f_max(f_set(-127.0f), f_min(f_set(127.0f), (part == 0 ? a : b) * f_set(inverse)));
        int32_t rounded[kLanes];
        i_store(rounded, i_from_f(scaled));
        for (int i = 0; i < kLanes; ++i) codes[part * kLanes + i] = static_cast<int8_t>(rounded[i]);
    }
    return halves[0];
}

}  // namespace

// Writes 16 bit columns with a stride, a few hundred stores per head: once per position, small beside reading the past.
void kv_store(const KvView& kv, int64_t pos, const float* k, const float* v) {
    const int64_t lane = pos % kKvBlock;
    for (int64_t head = 0; head < kv.n_head_kv; ++head, k += kv.head_dim_k, v += kv.head_dim_v) {
        std::byte* const keys = kv_block(kv.keys, kv.type, kv.head_dim_k, kv.capacity, head, pos);
        std::byte* const values = kv_block(kv.values, kv.type, kv.head_dim_v, kv.capacity, head, pos);
        if (kv.type == KvType::f16) {
            uint16_t halves[kLanes];
            for (int64_t d = 0; d < kv.head_dim_k; d += kLanes) {
                const int64_t n = min_of(kLanes, kv.head_dim_k - d);
                to_halves(k + d, n, halves);
                for (int64_t i = 0; i < n; ++i) std::memcpy(keys + ((d + i) * kKvBlock + lane) * 2, &halves[i], 2);
            }
            for (int64_t d = 0; d < kv.head_dim_v; d += kKvUnit) {
                to_halves(v + d, kv.head_dim_v - d, halves);
                std::memcpy(values + (d * kKvBlock + lane * kKvUnit) * 2, halves, sizeof halves);
            }
        } else {
            int8_t codes[kKvGroup];
            for (int64_t d = 0; d < kv.head_dim_k; d += kKvGroup) {
                std::byte* const group = keys + d / kKvGroup * kKvGroupBytes;
                const uint16_t scale = to_codes(k + d, codes);
                std::memcpy(group + lane * 2, &scale, 2);
                for (int64_t i = 0; i < kKvGroup; ++i) std::memcpy(group + 2 * kKvBlock + i * kKvBlock + lane, &codes[i], 1);
            }
            for (int64_t d = 0; d < kv.head_dim_v; d += kKvGroup) {
                std::byte* const group = values + d / kKvGroup * kKvGroupBytes;
                const uint16_t scale = to_codes(v + d, codes);
                std::memcpy(group + lane * 2, &scale, 2);
                for (int64_t u = 0; u < 2; ++u) {
                    std::memcpy(group + 2 * kKvBlock + (u * kKvBlock + lane) * kKvUnit, codes + u * kKvUnit, kKvUnit);
                }
            }
        }
    }
}

void attention(const AttentionJob& job) {
    if (job.kv.type == KvType::f16) {
        attend<HalfBlocks>(job);
    } else {
        attend<Q8Blocks>(job);
    }
}

void attention_join(const AttentionJob& job) {
    const int64_t units = unit_count(job.kv), width = units * kKvUnit;
    each_tile(job, [&](Tile& tile) {
        begin_tile(tile, units);
        for (int64_t row = 0; row < tile.rows; ++row) {
            for (int64_t chunk = tile.first(job, row) / kChunk; chunk * kChunk < tile.last(job, row); ++chunk) {
                const float* const part = part_of(job, tile, row, chunk);
                join_chunk(tile, row, part[width + kLanes], part + width, part, units);
            }
        }
        end_tile(job, tile, units);
    });
}

}  // namespace moepic::ops::MOEPIC_ISA
