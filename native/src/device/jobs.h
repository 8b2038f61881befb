// The steps of a forward pass over whole batches, as plain data: what engine/steps.h gives to whoever runs them, the CPU's kernels or a
// device library (api.h).
//
// Arithmetic: every step gives the bits of the CPU's kernels (ops/ops.h and what it says of the order of operations; cpu/tiles.h for sums
// over blocks). A device is another instruction set of the same arithmetic, so a granule may be computed on either side of a link.
//
// Pointers are to memory of the side that runs the step, except where a comment says "mapped": pinned host memory that a device reads or
// writes in place.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace moepic::device {

// What tells passes of one shape apart. Kernels read it from memory, and nothing else of a step depends on it, so that launches that were
// captured once (api.h, begin_capture) serve all later passes of that shape.
struct StateLeg {
    int64_t begin = 0, end = 0;  // tokens of the batch
    int32_t from = -1, to = 0;   // slots of SequenceState; below 0: zeros
};
struct PassPlace {
    int64_t first_pos = 0;  // of the batch's first token
    StateLeg legs[2];
};

inline constexpr int kActKinds = 3;
// Activations of a batch in the forms that weights want, as ActSet has them; null where nobody wants the form.
struct Acts {
    std::byte* data[kActKinds];  // [row] stride bytes apart, by ops::ActKind
    size_t stride[kActKinds];
};

// y = norm(x), and y quantized into `acts` by `mask` (bit ActKind). Kernels::rms_norm, or layer_norm where there is a bias; times factor.
struct NormJob {
    const float* x = nullptr;  // [n][stride]
    const float *weight = nullptr, *bias = nullptr;
    float eps = 0.0f, factor = 1.0f;
    float* y = nullptr;  // [n][stride]; may be x
    int64_t n = 0, cols = 0;
    int64_t stride = 0;  // floats from one row to the next, of x and y
    Acts acts{};         // row r of acts is row r here
    uint32_t mask = 0;
};

// One weight matrix for all tokens of a batch: MatmulJob over all its tiles. With n_group > 1 the rows fall into equal groups of whole
// tiles (the heads of latent attention): group h reads activations act_group bytes further and writes y_group floats further.
struct MatmulJob {
    ops::TiledMatrix w;
    const std::byte* acts = nullptr;
    size_t act_stride = 0;
    float* y = nullptr;  // y[t * y_stride + h * y_group + row - h * rows / n_group]
    int64_t y_stride = 0;
    const float* bias = nullptr;
    int64_t n_group = 1;
    size_t act_group = 0;
    int64_t y_group = 0;
};
inline constexpr int kMostMatmuls = 4;  // in one launch
struct MatmulList {
    MatmulJob jobs[kMostMatmuls];
    int n_jobs = 0;
    int64_t n_tokens = 0;
};

// What becomes of queries, keys and values after their projections, in the order of CpuSteps::heads.
struct HeadsJob {
    int64_t n = 0;  // tokens
    int64_t n_head = 0, n_head_kv = 0, head_dim_k = 0, head_dim_v = 0;
    const float* gated_q = nullptr;                    // [n][2 n_head head_dim_k]: each head's query, then its gate; null: q is there
    float *q = nullptr, *k = nullptr, *v = nullptr;    // [n][heads * head_dim]
    bool copies_values = false;                        // v = k before anything else
    bool value_norm = false;                           // rms without weight, per head
    bool whole_norm = false, head_norm = false;        // rms of q and k: the whole row before anything, or per head
    bool norm_after_rope = false;                      // of head_norm
    const float *q_norm = nullptr, *k_norm = nullptr;  // weights; null with head_norm: bare
    float eps = 0.0f;
    bool rotates = true;
    const float* angles = nullptr;  // [n][n_rot]: cos, sin per pair
    int64_t n_rot = 0;
    ops::RopePairing pairing{};
    const float* q_scale = nullptr;  // [n] factors of a token's queries, after all; null: none
};

// The same of latent attention, CpuSteps::latent_heads: k = [rms(latent) | rope(rest)]; of each raw head [plain | rotated part] the
// rotated part goes to q after the latent, rotated, and the plain part is quantized, row t * n_head + h of `plain_acts`.
struct LatentHeadsJob {
    int64_t n = 0, n_head = 0;
    int64_t plain = 0, kv_rank = 0, n_rot = 0;
    const float* raw = nullptr;  // [n][n_head][plain + n_rot]
    float* q = nullptr;          // [n][n_head][kv_rank + n_rot]
    float* k = nullptr;          // [n][kv_rank + n_rot]
    const float* k_norm = nullptr;
    float eps = 0.0f;
    const float* angles = nullptr;
    ops::RopePairing pairing{};
    Acts plain_acts{};
    uint32_t mask = 0;
};

// Tokens at positions [place->first_pos, place->first_pos + n) into the KV cache.
struct KvStoreJob {
    ops::KvView kv;
    const float *k = nullptr, *v = nullptr;  // [n][k_stride], [n][v_stride]
    int64_t k_stride = 0, v_stride = 0;
    const PassPlace* place = nullptr;
    int64_t n = 0;
};

// ops::AttentionJob for all tokens and heads.
struct AttentionJob {
    ops::KvView kv;
    const float* q = nullptr;  // [n][n_head * head_dim_k]
    float* out = nullptr;      // [n][n_head * head_dim_v]
    int64_t n = 0, n_head = 0;
    const PassPlace* place = nullptr;
    int64_t lowest_pos = 0, highest_pos = 0;  // place->first_pos lies between them: for these a launch is made
    float scale = 1.0f;
    int64_t window = 0;
    bool chunked = false;
    const float* sinks = nullptr;
    std::byte* scratch = nullptr;  // attention_scratch(...) bytes
    size_t scratch_bytes = 0;
};

// out = glu(gate, up) over rows, and out quantized by mask.
struct GluJob {
    ops::GluKind kind{};
    const float *gate = nullptr, *up = nullptr;  // [n][gate_stride], [n][up_stride]; element strides of 1
    int64_t gate_stride = 0, up_stride = 0;
    float* out = nullptr;  // [n][out_stride]; may be gate or up
    int64_t out_stride = 0;
    int64_t n = 0, cols = 0;
    Acts acts{};
    uint32_t mask = 0;
};

// The gated delta net between its projections (engine/delta_net.cpp): convolution, lengths and gates, the rule.
// Tokens of each leg of the batch's place lead from one state to another.
struct StateSlots {
    const PassPlace* place = nullptr;
    int n_legs = 0;
    float* first = nullptr;   // the layer's state in slot 0
    int64_t slot_floats = 0;  // from one slot to the next
};
struct ConvJob {
    float* x = nullptr;  // [n][n_channels], overwritten
    int64_t n_channels = 0;
    const float* taps = nullptr;  // [n_taps][n_channels]
    int64_t n_taps = 0;
    bool silu = false;
    StateSlots states;
};
// Queries and keys to unit length, queries times 1 / sqrt(head_dim_k) as well; beta = sigmoid(raw), decay = decay_of(rate, alpha + bias).
struct DeltaGatesJob {
    int64_t n = 0, n_channels = 0;
    int64_t n_head_k = 0, n_head_v = 0, head_dim_k = 0;
    float* channels = nullptr;  // [n][n_channels]: q heads, k heads, v heads
    float length_eps = 0.0f;
    const float* raw_beta = nullptr;  // [n][n_head_v], or with alpha null [n][2 n_head_v], per key head its betas, then its alphas
    const float* alpha = nullptr;     // [n][n_head_v]
    const float *rate = nullptr, *alpha_bias = nullptr;
    float *beta = nullptr, *decay = nullptr;  // [n][n_head_v]
};
struct DeltaRuleJob {
    int64_t n_channels = 0, n_head_k = 0, n_head_v = 0, head_dim_k = 0, head_dim_v = 0;
    bool tiled_value_heads = false;  // value head h has key head h % n_head_k; else h / (n_head_v / n_head_k)
    const float* channels = nullptr;
    const float *beta = nullptr, *decay = nullptr;
    float* out = nullptr;      // [n][n_head_v * head_dim_v]
    int64_t state_offset = 0;  // floats from the beginning of a layer's state to the matrix of head 0
    StateSlots states;
};

// The router: route_token (engine/router.cpp) for n tokens. Fields as Config and LayerConfig have them.
struct RouteJob {
    int64_t n = 0, n_expert = 0, k = 0;
    int32_t scoring = 0;  // model/recipe.h, Scoring
    int64_t n_group = 1, n_group_used = 1;
    bool groups_by_best = false, renormalise = false;
    float router_scale = 1.0f;
    const float *selection_bias = nullptr, *expert_scale = nullptr;
    float* logits = nullptr;   // [n][n_expert], overwritten
    int32_t* ids = nullptr;    // [n][k], ascending
    float* weights = nullptr;  // [n][k]
};

// Where the parts of a granule lie: expert/strip.h.
struct GranuleShape {
    int64_t n_embd = 0, granule = 0, n_granules = 0;  // neurons of a granule; granules of an expert
    Type gate_type{}, up_type{}, down_type{};
    size_t up_offset = 0, down_offset = 0, gate_bias_offset = 0, up_bias_offset = 0;  // bias offset 0: none
};

// One granule of one expert for the entries (token, expert) [first_entry, first_entry + n_entries).
struct ExpertTask {
    const std::byte* data;  // the granule, wherever the device can read it
    int32_t granule;
    int32_t first_entry, n_entries;
    int32_t first_row;  // down_few: row of `partials` for the first entry; the next entry's is n_granules rows further
};
// Tasks [first, first + count) of a list are ascending granules of one expert.
struct ExpertRun {
    int32_t first, count;
};
struct ExpertJob {
    GranuleShape shape;
    const ExpertTask* tasks = nullptr;  // device or mapped
    int32_t n_tasks = 0;
    const ExpertRun* runs = nullptr;  // expert_down_many
    int32_t n_runs = 0;
    int32_t most_entries = 0;  // of a task
    Acts acts{};
    const int32_t* entry_token = nullptr;  // [entries]: row of acts
    const float* entry_weight = nullptr;   // [entries]: multiplies gate x and up x before the activation; null: nothing does
    ops::GluKind glu{};
    std::byte* intermediate = nullptr;  // [entry][n_granules] rows of act_bytes(act_kind(down_type), granule)
    float* partials = nullptr;          // few: rows of [n_embd]; many: [entry][n_embd]
};

// What the host is told of layers that a device routes: letters of ids, one after the other in a ring. They are numbered by the device,
// from its own memory, so that launches which were captured once write ever new ones.
struct Letters {
    uint64_t* n_written = nullptr;  // on the device
    uint64_t n_letters = 0;         // of the ring
    int64_t most_ids = 0;           // of a letter
    int32_t* ids = nullptr;         // mapped, [n_letters][most_ids]
    uint32_t* flags = nullptr;      // mapped, [n_letters]: the number of the letter, written behind its ids
};

// The lists of a layer of few tokens whose experts all lie on the device, made there from what route() chose. Entries are (token, expert),
// ascending by expert, then by token. Of an expert that several tokens use, the tasks stand at its first entry and are for all of them; at
// the others stand tasks without entries.
struct TaskListJob {
    int64_t n = 0, k = 0, n_granules = 0;
    const int32_t* ids = nullptr;                // [n][k]
    const float* weights = nullptr;              // [n][k]; null: no entry_weight
    const std::byte* const* granules = nullptr;  // [n_expert][n_granules]: where each lies
    ExpertTask* tasks = nullptr;                 // [n k][n_granules]
    int32_t* entry_token = nullptr;              // [n k]
    float* entry_weight = nullptr;               // [n k]
    int32_t* token_entry = nullptr;              // [n][k + 1], the last is t: as ReduceJob has it
    Letters letters;
};

// x[t] += the token's experts, in the order of CpuFeedForward::reduce_row.
struct ReduceJob {
    int64_t n = 0, n_embd = 0, k = 0;
    float *x = nullptr, *shared_x = nullptr;
    float residual_scale = 1.0f;
    // Routed: entries of a token, experts ascending. k = 0: none.
    const int32_t* token_entry = nullptr;  // [n][k + 1]; the last is the shared expert's
    const int32_t* ids = nullptr;          // [n][k]; only read with down_bias
    const float* weights = nullptr;        // [n][k]; null: all 1 (the input was weighted)
    const float* down_bias = nullptr;      // [n_expert][n_embd]
    const float* partials = nullptr;
    // few: partials of (entry, granule) are row rows[entry * n_granules + granule], or with rows null that number itself.
    // many (n_granules = 1 here): row `entry`.
    const int32_t* rows = nullptr;
    int64_t n_granules = 0;
    // Shared: entry token_entry[t * (k + 1) + k] minus first_shared of its own partials, all granules in order.
    const float* shared_partials = nullptr;
    int64_t shared_granules = 0;  // 0: no shared expert
    int32_t first_shared = 0;
    const float* shared_weight = nullptr;  // [n]; null: all 1
};

}  // namespace moepic::device
