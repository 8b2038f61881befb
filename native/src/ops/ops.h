// Every operation of the forward pass, declared once. cpu/ defines them, once per instruction set, from one source; a device backend
// defines the same table. Knows tensors and blocks, never layers, experts or caches. Nothing here throws, allocates or starts threads.
//
// Arithmetic contract (design.md, section 8). The result of an op for one token and one output element is a fixed sequence of float
// operations, the same for every instruction set, tile range, number of tokens and thread: integer sums are exact, a float sum runs over
// blocks (or elements) in ascending order with fused multiply-adds written out, and vector lanes hold different outputs, never parts of one
// sum. Where a reduction across lanes is unavoidable (norms) its tree is fixed. So scalar, AVX2 and AVX-512 agree bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/types.h"

namespace moepic::ops {

enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

// Rows of a weight matrix are stored in tiles of 16: one vector lane per row.
inline constexpr int kTileRows = 16;

// A weight matrix re-tiled for the kernels; a view that owns nothing. Tile t holds rows [16 t, 16 t + 16), the last one padded with rows
// that decode to zero. Bytes of a tile: cols / block_len blocks, each block of 16 rows together; the layout inside is cpu/tiles.h.
struct TiledMatrix {
    Type type = Type::f32;
    int64_t rows = 0;
    int64_t cols = 0;
    const std::byte* data = nullptr;  // 64-byte aligned
    int64_t n_tiles() const noexcept { return (rows + kTileRows - 1) / kTileRows; }
};

// How tiles are written: through the caches, for who computes with them at once, or past them, which spares reading what is overwritten.
enum class TileStores : uint8_t { cached, past };

// Tiles need as many bytes as the padded rows did in the file (rounded up to 64 per matrix).
size_t tiled_bytes(Type type, int64_t rows, int64_t cols) noexcept;

// Activations as the kernel for a weight type wants them.
enum class ActKind : uint8_t {
    f32,     // floats, for F32, F16 and BF16 weights
    q8_32,   // int8 with one float scale per 32, for 32-blocks
    q8_256,  // int8 with one float scale per 256, for 256-blocks
};
ActKind act_kind(Type weights) noexcept;
size_t act_bytes(ActKind kind, int64_t cols) noexcept;  // per token, a multiple of 64

// y[t][row] (+)= sum_k w[row][k] x[t][k] (+ bias[row]) for the rows of tiles [tile_begin, tile_end).
struct MatmulJob {
    TiledMatrix w;
    const std::byte* acts = nullptr;  // tokens, each act_bytes(kind, w.cols) long unless act_stride says otherwise
    size_t act_stride = 0;            // bytes from one token to the next
    const int32_t* gather = nullptr;  // token t reads activation row gather[t]; null: row t
    int64_t n_tokens = 0;
    float* y = nullptr;    // y[t * y_stride + row]
    int64_t y_stride = 0;  // floats
    int64_t tile_begin = 0, tile_end = 0;
    const float* bias = nullptr;   // [rows] or null; added after the sum
    bool accumulate = false;       // the finished sum is added to y instead of replacing it
    std::byte* scratch = nullptr;  // matmul_scratch_bytes(), 64-byte aligned, one per thread
};
inline constexpr size_t kMatmulScratchBytes = size_t{1} << 19;

enum class GluKind : uint8_t {
    silu,          // silu(gate) * up
    silu_clamped,  // g sigmoid(1.702 g) (u + 1) with g = min(gate, 7), u = up clamped to [-7, 7]; gpt-oss
    gelu,          // gelu(gate) * up, gelu by tanh: 0.5 g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3)))
    sigmoid,       // sigmoid(gate) * up
};

// Keys and values of past positions of one layer and one sequence. Positions are stored in blocks of 16 so that a lane is a position for
// scores (keys: [head_dim][16] per block and head) and a lane is a channel for the output (values: [16][head_dim]); cpu/kv_layout.h.
enum class KvType : uint8_t { f16, q8_0 };
inline constexpr int kKvBlock = 16;
inline constexpr int kKvRing = 256;
struct KvView {
    KvType type = KvType::f16;
    int64_t n_head_kv = 0;
    int64_t head_dim_k = 0, head_dim_v = 0;  // multiples of 32 for q8_0, of 2 for f16
    // Positions that are held, a multiple of kKvBlock: position p lies where p mod capacity does. A layer with a window may hold fewer than
    // the context has; its capacity is then a multiple of kKvRing, so that what attention walks together is not torn.
    int64_t capacity = 0;
    std::byte* keys = nullptr;  // kv_bytes(...) each, 64-byte aligned
    std::byte* values = nullptr;
};
size_t kv_bytes(KvType type, int64_t n_head_kv, int64_t head_dim, int64_t capacity) noexcept;  // of keys, or of values

// Causal attention of tokens at positions [first_pos, first_pos + n_tokens) over the KV of positions 0 .. own position.
// One call computes query heads [head_begin, head_end) of tokens [token_begin, token_end); any split gives the same bits.
struct AttentionJob {
    KvView kv;
    const float* q = nullptr;  // [n_tokens][n_head * head_dim_k]
    float* out = nullptr;      // [n_tokens][n_head * head_dim_v]
    int64_t n_head = 0;
    int64_t first_pos = 0;
    int64_t token_begin = 0, token_end = 0;
    int64_t head_begin = 0, head_end = 0;
    float scale = 1.0f;            // multiplies q . k
    int64_t window = 0;            // sliding window in positions, own included; 0: all
    bool chunked = false;          // the window does not slide: a token sees its own chunk of `window` positions, counted from 0
    const float* sinks = nullptr;  // [n_head] logits that join the softmax without a value; null: none
    std::byte* scratch = nullptr;  // kAttentionScratchBytes, 64-byte aligned, one per thread

    // Split work: `attention` does one chunk of kKvChunk positions, counted from position 0, and leaves it here; when all chunks from
    // first_chunk to that of the last position are done, `attention_join` makes the outputs. Null: all chunks at once.
    float* parts = nullptr;  // [tokens][n_head][n_chunks][attention_part_floats]
    int64_t first_chunk = 0, n_chunks = 0;
    int64_t chunk = 0;
};
// The first position that a token at `pos` sees; the last is its own.
constexpr int64_t first_seen(int64_t pos, int64_t window, bool chunked) noexcept {
    if (window <= 0) return 0;
    if (chunked) return pos / window * window;
    return pos >= window ? pos + 1 - window : 0;
}
inline constexpr int64_t kKvChunk = 256;  // positions whose softmax has a maximum of its own; part of attention's arithmetic
static_assert(kKvRing % kKvChunk == 0, "a ring holds whole chunks, or blocks of one would not lie side by side");
// Of one row and chunk: outputs, padded to whole vectors, 16 denominators and 16 times the maximum.
constexpr int64_t attention_part_floats(int64_t head_dim_v) noexcept {
    return (head_dim_v + 15) / 16 * 16 + 32;
}
inline constexpr size_t kAttentionScratchBytes = size_t{1} << 18;

enum class RopePairing : uint8_t { norm, neox };  // (2j, 2j+1) | (j, j + n_rot/2)

// y[t][c] = sum_j taps[j][c] x[t - (n_taps - 1) + j][c], the oldest tap first; with `silu`, y = y / (1 + e^-y). Overwrites x, for channels
// [channel_begin, channel_end) of every token. Inputs before the first token come from a state, which moves on to those after the last.
struct CausalConvJob {
    float* x = nullptr;  // [n_tokens][stride]
    int64_t stride = 0;  // floats from one token to the next
    int64_t n_tokens = 0;
    const float* taps = nullptr;  // [n_taps][n_channels]
    int64_t n_taps = 0;           // 2 to kMostTaps
    int64_t n_channels = 0;
    const float* from = nullptr;  // [n_taps - 1][n_channels], oldest first; null: zeros
    float* to = nullptr;          // the same after the last token; may be `from`
    int64_t channel_begin = 0, channel_end = 0;
    bool silu = false;
};
inline constexpr int64_t kMostTaps = 8;

// The gated delta rule of one head (Yang et al. 2024, equation 10), token after token, on a state S [head_dim_k][head_dim_v]:
//   S = decay S;  S += k (beta (v - S^T k))^T;  out = S^T q
struct DeltaRuleJob {
    int64_t n_tokens = 0;
    int64_t head_dim_k = 0, head_dim_v = 0;
    const float *q = nullptr, *k = nullptr, *v = nullptr;  // of this head; the next token's are `stride` floats further
    int64_t stride = 0;
    const float *decay = nullptr, *beta = nullptr;  // one each per token, `gate_stride` floats apart
    int64_t gate_stride = 0;
    float* out = nullptr;  // [head_dim_v], the next token's `out_stride` floats further
    int64_t out_stride = 0;
    const float* from = nullptr;  // S before the first token, delta_state_floats(...); null: zeros
    float* to = nullptr;          // S after the last; may be `from`
};
// Rows of S are padded to whole vectors; the padding stays zero.
constexpr int64_t delta_state_floats(int64_t head_dim_k, int64_t head_dim_v) noexcept {
    return head_dim_k * ((head_dim_v + 15) / 16 * 16);
}

// The table of one instruction set. Pointers are never null.
struct Kernels {
    Isa isa;
    const char* name;

    // Re-tile rows given as GGUF blocks: row r starts at src + r * row_stride and is `cols` long. dst: tiled_bytes(type, rows, cols).
    void (*tile_rows)(Type type, const std::byte* src, size_t row_stride, int64_t rows, int64_t cols, std::byte* dst, TileStores stores);
    // Activations of one token; x is [cols] floats. Non-finite input gives non-finite or saturated output, never a trap.
    void (*quantize_act)(ActKind kind, const float* x, int64_t cols, std::byte* out);
    void (*matmul)(const MatmulJob& job);
    // No work of a model: products of 8-bit codes out of registers, to know this instruction set's ceiling. Returns how many
    // multiplications and additions that were; sum: of all products, each 1, modulo 2^32.
    int64_t (*multiply_codes)(int64_t rounds, int32_t* sum);

    // y = x / sqrt(mean(x^2) + eps) * weight; weight null: 1. y may be x.
    void (*rms_norm)(const float* x, const float* weight, float eps, float* y, int64_t n);
    // y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias. y may be x.
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* y, int64_t n);
    // Rotate n_rot dims of one head in place: (a, b) -> (a c - b s, a s + b c) with cos_sin[2 j], cos_sin[2 j + 1] for pair j.
    void (*rope)(float* head, const float* cos_sin, int64_t n_rot, RopePairing pairing);
    // out[i] = glu(gate[i], up[i]); out may be gate.
    void (*glu)(GluKind kind, const float* gate, const float* up, float* out, int64_t n);
    void (*softmax)(float* x, int64_t n);                                        // in place, max-subtracted
    void (*sigmoid)(float* x, int64_t n);                                        // in place
    void (*add)(float* y, const float* x, int64_t n);                            // y += x
    void (*multiply)(float* y, const float* x, int64_t n);                       // y *= x
    void (*scale_add)(float* y, float a, const float* x, int64_t n);             // y = fma(a, x, y)
    void (*scale)(float* y, float a, int64_t n);                                 // y *= a
    void (*soft_cap)(float* x, float cap, int64_t n);                            // x = cap tanh(x / cap)
    void (*decode_row)(Type type, const std::byte* row, float* out, int64_t n);  // one row of GGUF blocks to floats (embeddings)

    // Store one position: k is [n_head_kv * head_dim_k], v is [n_head_kv * head_dim_v].
    void (*kv_store)(const KvView& kv, int64_t pos, const float* k, const float* v);
    void (*attention)(const AttentionJob& job);
    void (*attention_join)(const AttentionJob& job);

    void (*causal_conv)(const CausalConvJob& job);
    void (*delta_rule)(const DeltaRuleJob& job);
};

Isa best_isa() noexcept;                        // of this machine, from cpuid
const Kernels* find_kernels(Isa isa) noexcept;  // null when this machine or this build can't run it
const char* isa_name(Isa isa) noexcept;

}  // namespace moepic::ops
