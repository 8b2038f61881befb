// What a device library offers: memory, streams, events, copies, and the steps of a forward pass over whole batches. A device library
// (cuda/, built by nvcc or, for the emulation, by g++) is opened at run time and answers with one table of functions; nothing here mentions
// CUDA, so the core is built and runs without it.
//
// Arithmetic: every step gives the bits of the CPU's kernels (ops/ops.h and what it says of the order of operations; cpu/tiles.h for sums
// over blocks). A device is another instruction set of the same arithmetic, so a granule may be computed on either side of a link.
//
// Pointers in jobs are the device's, except where a comment says "mapped": pinned host memory that the device reads or writes in place.
// Jobs are copied by the call. Functions return 0, or a code below 0 whose text last_error() gives for the calling thread; nothing throws
// across the table. Work is asynchronous and ordered by its stream; a step that fails later is seen by the next synchronizing call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace moepic::device {

inline constexpr uint32_t kApiVersion = 1;

using Stream = struct StreamState*;
using Event = struct EventState*;

struct Info {
    char name[128];
    int32_t index;
    int32_t major, minor;  // compute capability
    int32_t n_sm;
    int32_t is_emulated;
    uint64_t total_bytes, free_bytes;
};

// Codes of the table.
inline constexpr int32_t kOk = 0, kFailed = -1, kNoMemory = -2, kNoDevice = -3, kUnsupported = -4;

// ---- jobs ------------------------------------------------------------------------------------------------------------------------------

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

// What Decoder::make_heads does to queries, keys and values after their projections, in its order.
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

// What Decoder::make_latent_heads does after its projections: k = [rms(latent) | rope(rest)]; of each raw head [plain | rotated part] the
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

// Tokens at positions [first_pos, first_pos + n) into the KV cache.
struct KvStoreJob {
    ops::KvView kv;
    const float *k = nullptr, *v = nullptr;  // [n][k_stride], [n][v_stride]
    int64_t k_stride = 0, v_stride = 0;
    int64_t first_pos = 0, n = 0;
};

// ops::AttentionJob for all tokens and heads.
struct AttentionJob {
    ops::KvView kv;
    const float* q = nullptr;  // [n][n_head * head_dim_k]
    float* out = nullptr;      // [n][n_head * head_dim_v]
    int64_t n = 0, n_head = 0, first_pos = 0;
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

// The gated delta net between its projections (engine/delta_net.cpp), one launch or several: convolution, lengths, gates, the rule, norm.
// Legs as SequenceState has them: tokens [begin, end) lead from one state to another.
struct StateLeg {
    int64_t begin = 0, end = 0;
    const float* from = nullptr;  // null: zeros
    float* to = nullptr;
};
struct ConvJob {
    float* x = nullptr;  // [n][n_channels], overwritten
    int64_t n_channels = 0;
    const float* taps = nullptr;  // [n_taps][n_channels]
    int64_t n_taps = 0;
    bool silu = false;
    StateLeg legs[2];
    int n_legs = 0;
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
    int64_t state_offset = 0;  // floats from the beginning of a leg's state to the matrix of head 0
    StateLeg legs[2];
    int n_legs = 0;
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

// x[t] += the token's experts, in the order of FeedForward::reduce_row.
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

// ---- the table -------------------------------------------------------------------------------------------------------------------------

struct Api {
    uint32_t version;
    uint32_t size;  // sizeof(Api)

    const char* (*last_error)();
    int32_t (*count)(int32_t* n);
    int32_t (*open)(int32_t index, Info* info);  // describes it, and makes it the calling thread's
    int32_t (*use)(int32_t index);               // makes it the calling thread's; every thread that calls below has to. Cheap
    int32_t (*memory)(uint64_t* free_bytes, uint64_t* total_bytes);

    int32_t (*allocate)(size_t bytes, void** out);
    void (*release)(void* data);
    int32_t (*allocate_host)(size_t bytes, void** out);  // pinned and mapped: one address on both sides
    void (*release_host)(void* data);
    int32_t (*pin)(void* data, size_t bytes);  // memory of the caller's; mapped at the same address
    void (*unpin)(void* data);

    int32_t (*make_stream)(int32_t priority, Stream* out);  // 0: usual; -1: before others
    void (*free_stream)(Stream stream);
    int32_t (*synchronize)(Stream stream);
    int32_t (*make_event)(Event* out);
    void (*free_event)(Event event);
    int32_t (*record)(Event event, Stream stream);
    int32_t (*wait)(Stream stream, Event event);    // later work of the stream waits for the event's last record
    int32_t (*is_done)(Event event, int32_t* out);  // 1: its last record has been reached; never blocks
    int32_t (*wait_host)(Event event);
    int32_t (*elapsed)(Event from, Event to, double* seconds);  // between two records that have been reached

    int32_t (*copy)(void* to, const void* from, size_t bytes, Stream stream);  // any direction; host memory must be pinned
    int32_t (*clear)(void* data, size_t bytes, Stream stream);                 // zeros
    // Copies n dwords to mapped memory, then makes *flag = value visible to the host after them.
    int32_t (*post)(const void* from, size_t n_dwords, void* mapped, uint32_t* flag, uint32_t value, Stream stream);

    int32_t (*norm)(const NormJob& job, Stream stream);
    int32_t (*quantize)(uint32_t mask, const float* x, int64_t stride, int64_t cols, int64_t n, const Acts& acts, Stream stream);
    int32_t (*matmul)(const MatmulList& list, Stream stream);
    int32_t (*heads)(const HeadsJob& job, Stream stream);
    int32_t (*latent_heads)(const LatentHeadsJob& job, Stream stream);
    int32_t (*kv_store)(const KvStoreJob& job, Stream stream);
    size_t (*attention_scratch)(const ops::KvView& kv, int64_t n, int64_t n_head);
    int32_t (*attention)(const AttentionJob& job, Stream stream);
    int32_t (*glu)(const GluJob& job, Stream stream);
    int32_t (*scale)(float* y, float a, int64_t n, Stream stream);                      // y *= a
    int32_t (*scale_add)(float* y, float a, const float* x, int64_t n, Stream stream);  // y = fma(a, x, y)
    int32_t (*add)(float* y, const float* x, int64_t n, Stream stream);                 // y += x
    int32_t (*multiply)(float* y, const float* x, int64_t n, Stream stream);            // y *= x
    int32_t (*sigmoid)(float* x, int64_t n, Stream stream);                             // in place
    int32_t (*conv)(const ConvJob& job, Stream stream);
    int32_t (*delta_gates)(const DeltaGatesJob& job, Stream stream);
    int32_t (*delta_rule)(const DeltaRuleJob& job, Stream stream);
    int32_t (*route)(const RouteJob& job, Stream stream);
    int32_t (*expert_intermediate)(const ExpertJob& job, Stream stream);  // act(gate x) * up x, quantized for down
    int32_t (*expert_down_few)(const ExpertJob& job, Stream stream);      // one row of partials per (entry, granule)
    int32_t (*expert_down_many)(const ExpertJob& job, Stream stream);     // granules of a run added in order; granule 0 overwrites
    int32_t (*reduce)(const ReduceJob& job, Stream stream);
};

// The one symbol of a device library.
using Entry = const Api* (*)();
inline constexpr const char* kEntryName = "moepic_device_api";

}  // namespace moepic::device
