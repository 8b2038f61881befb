/* MoEpic-GGUF: the whole C API.
 *
 * Handles are opaque. Outputs come first. Functions that can fail return 0 or a negative MOEPIC_E_* code and leave a text for
 * moepic_last_error() on the calling thread; outputs are then untouched. One _free per handle, and it accepts NULL. Option structs start
 * with their size and have an _init that fills the defaults; pass &options or NULL for the defaults. Callbacks take `void* user` last; a
 * non-zero return stops the work, which then fails with MOEPIC_E_CANCELLED and leaves every handle usable.
 *
 * Threads: a moepic_model and a moepic_file are immutable after load and may be used from any thread. A moepic_context or moepic_sampler is
 * used by one thread at a time; moepic_context_cancel may be called from any thread at any time. A model must outlive its contexts.
 */
#ifndef MOEPIC_H
#define MOEPIC_H

#include <stdint.h>

#ifndef MOEPIC_API
#ifdef __cplusplus
#define MOEPIC_API extern "C" __attribute__((visibility("default")))
#else
#define MOEPIC_API extern __attribute__((visibility("default")))
#endif
#endif

/* The text from here to "cdef: end" is also what the Python binding reads (cffi, ABI mode), so it holds plain C without a preprocessor. */
/* cdef: begin */

enum {
    MOEPIC_E_ARGUMENT = -1,     /* the caller passed something impossible */
    MOEPIC_E_IO = -2,           /* the operating system refused: open, map, read */
    MOEPIC_E_FORMAT = -3,       /* bytes that are not what they claim to be */
    MOEPIC_E_UNSUPPORTED = -4,  /* well formed, but this build can't run it */
    MOEPIC_E_NO_MEMORY = -5,    /* an allocation failed */
    MOEPIC_E_BUDGET = -6,       /* a memory budget is too small */
    MOEPIC_E_DEVICE = -7,       /* a device is absent or failed */
    MOEPIC_E_CONTEXT_FULL = -8, /* tokens do not fit the context */
    MOEPIC_E_CANCELLED = -9,    /* a callback or moepic_context_cancel stopped the work */
    MOEPIC_E_INTERNAL = -10     /* a broken invariant of ours: please report it */
};

/* Version as one comparable number: major * 10000 + minor * 100 + patch; and as text. */
MOEPIC_API int32_t moepic_version(void);
MOEPIC_API const char* moepic_version_text(void);
/* Text of the last failure on this thread; never NULL; valid until the next failing call on this thread. */
MOEPIC_API const char* moepic_last_error(void);

/* Messages for a person (level 0 debug .. 3 error). The core never prints. NULL drops them. The sink may be called from any thread. */
typedef void (*moepic_log_fn)(int32_t level, const char* text, void* user);
MOEPIC_API void moepic_log_set(moepic_log_fn sink, void* user);

/* UTF-8 bytes that are not NUL-terminated; owned by the handle they came from. */
typedef struct moepic_text {
    const char* data;
    uint64_t size;
} moepic_text;

/* ---- block types ------------------------------------------------------------------------------------------------------------------- */

typedef struct moepic_type {
    uint32_t id;          /* GGUF type id */
    const char* name;     /* GGUF letters, static */
    uint32_t block_len;   /* weights per block */
    uint32_t block_bytes; /* bytes per block */
    int32_t has_encoder;  /* moepic_quantize accepts it */
} moepic_type;

MOEPIC_API int32_t moepic_type_get(moepic_type* out, uint32_t id);
MOEPIC_API int32_t moepic_type_find(moepic_type* out, const char* name);
/* n weights of one type to float32, bit-equal to the gguf package's dequantizers. n is a multiple of the block length. */
MOEPIC_API int32_t moepic_dequantize(float* out, uint32_t type, const void* blocks, int64_t n);
/* rows x cols floats to blocks. `importance` is NULL or cols non-negative weights of the squared error. Rows are shared among n_threads. */
MOEPIC_API int32_t moepic_quantize(void* out, uint32_t type, const float* in, int64_t rows, int64_t cols, const float* importance,
                                   int32_t n_threads);

/* ---- files: metadata and tensor table, no weights read ------------------------------------------------------------------------------- */

typedef struct moepic_file moepic_file;

typedef struct moepic_key {
    moepic_text name;
    uint32_t type; /* GGUF value type: 0 u8, 1 i8, 2 u16, 3 i16, 4 u32, 5 i32, 6 f32, 7 bool, 8 string, 9 array, 10 u64, 11 i64, 12 f64 */
    uint32_t element_type; /* of an array; otherwise equal to type */
    uint64_t count;        /* elements of an array; otherwise 1 */
} moepic_key;

typedef struct moepic_tensor {
    moepic_text name;
    uint32_t type; /* GGUF type id */
    uint32_t n_dims;
    uint64_t ne[4];   /* fastest dimension first, as in the file; unused ones are 1 */
    uint64_t n_bytes; /* 0 when the type is unknown to this build */
    uint32_t shard;
    uint64_t offset;  /* of the data in that shard's file */
    const void* data; /* mapped bytes, valid while the file is open; NULL when the type is unknown */
} moepic_tensor;

/* Open a GGUF file, or all shards when `path` is one shard of a split. E_IO, E_FORMAT. */
MOEPIC_API int32_t moepic_file_open(moepic_file** out, const char* path);
MOEPIC_API void moepic_file_free(moepic_file* file);
MOEPIC_API uint64_t moepic_file_bytes(const moepic_file* file);
MOEPIC_API uint32_t moepic_file_shard_count(const moepic_file* file);
MOEPIC_API int32_t moepic_file_shard_path(moepic_text* out, const moepic_file* file, uint32_t shard);
MOEPIC_API int64_t moepic_file_key_count(const moepic_file* file);
MOEPIC_API int32_t moepic_file_key(moepic_key* out, const moepic_file* file, int64_t index);
/* All values of a key into arrays of key.count elements; a scalar is an array of one. E_ARGUMENT when the type does not convert. */
MOEPIC_API int32_t moepic_file_values_i64(int64_t* out, const moepic_file* file, int64_t index);
MOEPIC_API int32_t moepic_file_values_f64(double* out, const moepic_file* file, int64_t index);
MOEPIC_API int32_t moepic_file_values_text(moepic_text* out, const moepic_file* file, int64_t index);
MOEPIC_API int64_t moepic_file_tensor_count(const moepic_file* file);
MOEPIC_API int32_t moepic_file_tensor(moepic_tensor* out, const moepic_file* file, int64_t index);

/* ---- models ----------------------------------------------------------------------------------------------------------------------------
 */

typedef struct moepic_model moepic_model;

/* Called on the calling thread. `stage` is static text ("load", "prefill"); done and total are bytes or tokens. */
typedef int32_t (*moepic_progress_fn)(const char* stage, uint64_t done, uint64_t total, void* user);

/* How experts that are not all in memory are kept and brought. They are streamed when ram_bytes is too small for all of them, or when
 * `always` or link_bytes_s ask for it; otherwise these options do nothing. Names and defaults: docs/streaming.md. */
typedef struct moepic_stream_options {
    uint32_t size;
    int32_t always;         /* non-zero: through the expert cache even where every expert would fit */
    int64_t cache_bytes;    /* of the expert cache; -1: what ram_bytes leaves, or all experts */
    uint64_t staging_bytes; /* of transfers under way; 0: 32 MiB, and never less than two transfers */
    int32_t policy;         /* 0 lru, 1 lfu, 2 lcp, 3 lrfu (default), 4 static (needs a profile), 6 auto */
    int32_t policy_start;   /* what auto starts with: 0 to 3 */
    int32_t eviction;       /* -1: granules where the file can be read by granules, else whole; 0 whole, 1 granules, bottoms first */
    int32_t scope;          /* 0 a pool per layer, 1 global */
    int32_t bypass;         /* non-zero: keep only what is worth more than what must leave */
    double rho, omega;      /* lcp */
    double half_life;       /* lrfu, tokens */
    double granule_omega;   /* weight of the cut in a granule's worth; below 0: from the budget */
    int32_t predictor;      /* 0 none, 1 previous_token, 2 next_layer (default) */
    int32_t lookahead;      /* next_layer: 1 or 2 layers */
    int32_t io;             /* 0: the best the kernel allows, 1 io_uring, 2 threads */
    int32_t direct;         /* non-zero (default): past the page cache */
    double link_bytes_s;    /* > 0: an emulated link: experts lie in RAM, the cache plays a device's memory. 0: they lie in the file */
    double link_latency_s;  /* per transfer of the emulated link */
    double cpu_bytes_s;     /* > 0: beside the emulated link, a CPU lane that computes granules where they lie, no faster than this. On a
                               device: what its CPU lane is believed to do at most; 0: what is measured */
    int32_t adapt;          /* non-zero (default): try out, by wall time, whether prefetching and a CPU lane pay; leave off what does not */
    int32_t n_moe_layer;    /* of the two arrays */
    const int32_t* top;     /* [n_moe_layer] granules of an expert that may be cached; NULL: all */
    const int64_t* budget;  /* [n_moe_layer] bytes; NULL: cache_bytes in proportion */
    int64_t n_profile;      /* experts of all MoE layers */
    const double* profile;  /* [n_profile] uses, for a warm start; NULL: starts cold */
} moepic_stream_options;
MOEPIC_API void moepic_stream_options_init(moepic_stream_options* options);

typedef struct moepic_context_options {
    uint32_t size;
    int32_t n_ctx;     /* positions; 0: what the model was trained for, at most 4096 */
    int32_t n_batch;   /* tokens computed together in prefill; 0: 512 */
    int32_t n_threads; /* 0: all cores this process may use */
    int32_t kv_type;   /* GGUF type id of keys and values: 1 F16 (default), 8 Q8_0 */
} moepic_context_options;

/* ---- devices: where the steps of a pass run ------------------------------------------------------------------------------------------ */

enum {
    MOEPIC_DEVICE_CPU = 0,
    MOEPIC_DEVICE_CUDA = 1,
    MOEPIC_DEVICE_EMULATED = 2 /* CUDA kernels on the CPU, for tests: a library of developer builds */
};

typedef struct moepic_device_info {
    uint32_t size;
    char name[128];                   /* NUL-terminated */
    int32_t major, minor;             /* compute capability */
    int32_t n_sm;                     /* streaming multiprocessors */
    uint64_t total_bytes, free_bytes; /* of its memory */
} moepic_device_info;
/* Opens the device library and the device `index` of a kind other than the CPU. `folder`: of the library; NULL: beside this one. Set
 * out->size first. E_DEVICE says what is missing: the library, a driver, the device. */
MOEPIC_API int32_t moepic_device_find(moepic_device_info* out, int32_t kind, int32_t index, const char* folder);

typedef struct moepic_device_options {
    uint32_t size;
    int32_t kind; /* MOEPIC_DEVICE_*; the CPU by default */
    int32_t index;
    int32_t cpu_lane;    /* non-zero (default): the CPU computes granules beside the device, where that ends a layer sooner */
    int32_t graphs;      /* launches of a token all of whose experts are resident as one graph. -1 (default): measured from time to time,
                            and done where it is faster; 0: never; 1: always */
    uint64_t vram_bytes; /* for weights, one context, frames and the expert cache together; 0: what is free, less 256 MiB. What the driver
                            takes for itself is not part of it. E_BUDGET when not even an empty cache fits */
    uint64_t
        pin_bytes; /* of RAM pinned for the link at most; 0: all experts, as far as the system grants it. The rest takes one more copy */
    const char* folder; /* of the device libraries; NULL: beside this one */
} moepic_device_options;
MOEPIC_API void moepic_device_options_init(moepic_device_options* options);

typedef struct moepic_model_options {
    uint32_t size;
    int32_t n_threads;  /* for loading; 0: all cores this process may use */
    int32_t isa;        /* -1: best of this machine; 0 scalar, 1 AVX2, 2 AVX-512. E_UNSUPPORTED when this machine can't */
    int32_t granule;    /* neurons per granule; 0: the rule of docs/architecture.md. Results depend on it in the last bits, so it is an
                           explicit choice */
    int32_t strict;     /* non-zero: any downgrade is an error instead of a warning */
    uint64_t ram_bytes; /* for weights, one context, staging and the expert cache together; 0: no limit. Experts that do not fit are
                           streamed from the file; E_BUDGET (need, have, the smallest that works) when not even the rest fits */
    moepic_progress_fn progress;
    void* user;
    const moepic_context_options* context;  /* what ram_bytes has to leave room for; NULL: the defaults */
    const moepic_stream_options* streaming; /* NULL: the defaults */
    const moepic_device_options* device;    /* NULL: the CPU */
} moepic_model_options;

/* What loading would take, and how, in bytes. Of a model on a device: of the device's memory, and `least` is the smallest vram_bytes. */
typedef struct moepic_memory {
    uint32_t size;
    int32_t streams;             /* non-zero: experts would be streamed */
    uint64_t weights;            /* that have to be in memory anyway */
    uint64_t experts;            /* all routed experts */
    uint64_t kv, state, scratch; /* of the context in the options */
    uint64_t staging;            /* buffers of transfers; 0 where nothing would be streamed */
    uint64_t cache;              /* left for experts; 0 where nothing would be streamed */
    uint64_t least;              /* the smallest ram_bytes that works with these options */
} moepic_memory;

typedef struct moepic_model_info {
    uint32_t size;
    moepic_text architecture; /* GGUF id */
    int32_t n_layer, n_embd, n_vocab, n_ctx_train;
    int32_t n_head, n_head_kv, head_dim_k, head_dim_v; /* of the first layer with keys and values */
    int32_t n_expert, n_expert_used;                   /* 0: dense */
    uint64_t n_params;
    uint64_t file_bytes;
    uint64_t weight_bytes;           /* in memory: resident weights and the expert cache */
    uint64_t expert_bytes;           /* of all routed experts, wherever they are */
    uint64_t active_bytes;           /* weights read for one decoded token */
    uint64_t kv_bytes_per_token_f16; /* of layers that see every position */
    uint64_t kv_window_bytes_f16;    /* of layers with a window: the windows, whatever the context */
    const char* isa;                 /* kernels in use, static */
    int32_t streams;                 /* non-zero: experts are streamed */
    int32_t n_moe_layer;
    uint64_t cache_bytes;   /* of the expert cache; 0: every expert is resident */
    uint64_t staging_bytes; /* buffers of transfers, besides weight_bytes */
} moepic_model_info;

typedef struct moepic_layer_info {
    uint32_t size;
    int32_t n_expert, n_expert_used;        /* 0: dense feed-forward */
    int32_t n_ff;                           /* width of one expert, or of the dense feed-forward */
    int32_t granule;                        /* neurons */
    int32_t n_granules;                     /* per expert */
    int32_t top_granules;                   /* as the file was cut; n_granules for an ordinary file */
    int32_t n_ff_shared;                    /* width of the shared expert; 0: none */
    uint32_t gate_type, up_type, down_type; /* GGUF type ids */
    uint64_t expert_bytes;                  /* one expert */
    int32_t device;                         /* -1: CPU */
} moepic_layer_info;

MOEPIC_API void moepic_model_options_init(moepic_model_options* options);
/* Map, check, bind and re-tile. E_IO, E_FORMAT, E_UNSUPPORTED (names the architecture, tensor or type), E_BUDGET, E_NO_MEMORY,
 * E_CANCELLED. */
MOEPIC_API int32_t moepic_model_load(moepic_model** out, const char* path, const moepic_model_options* options);
MOEPIC_API void moepic_model_free(moepic_model* model);
MOEPIC_API int32_t moepic_model_get_info(moepic_model_info* out, const moepic_model* model);
MOEPIC_API int32_t moepic_model_get_layer(moepic_layer_info* out, const moepic_model* model, int32_t layer);
/* The decisions of moepic_model_load without reading a weight. A budget of RAM below `least` is not an error here. A device's memory is
 * taken for the moment, and E_BUDGET, E_DEVICE, E_NO_MEMORY are those of loading. */
MOEPIC_API int32_t moepic_model_memory(moepic_memory* out, const char* path, const moepic_model_options* options);
/* Whether this build would load the file: reads the configuration and places every tensor, touches no weights. Fails with the code and text
 * that moepic_model_load would. */
MOEPIC_API int32_t moepic_model_check(const moepic_file* file);
/* Bytes of keys and values in F16 that a model of this file needs: per token of context, and in windows whatever the context; and how many
 * positions the widest window has (0: there are none). Fails as moepic_model_check does where the configuration is the reason. */
MOEPIC_API int32_t moepic_model_kv_need(uint64_t* per_token, uint64_t* in_windows, uint64_t* window, const moepic_file* file);
/* The file's metadata; borrowed, valid while the model lives. */
MOEPIC_API const moepic_file* moepic_model_file(const moepic_model* model);

/* Served so far, all contexts together, since load or moepic_model_reset_stream_stats. E_ARGUMENT for a model that does not stream. */
typedef struct moepic_stream_stats {
    uint32_t size;
    int64_t cache_bytes, resident_bytes;                     /* of the expert cache: its size, and what is in it now */
    int64_t loads, evictions;                                /* granules since load; loads - evictions are resident */
    uint64_t lane_bytes, lane_raw_bytes, lane_dropped_bytes; /* delivered; moved with what alignment added; moved and not wanted any more */
    int64_t n_transfers, n_cancelled, n_failed;
    double lane_busy_s;               /* wall time during which something moved */
    double lane_bytes_s, cpu_bytes_s; /* rates of late; 0: not measured, or no such lane */
    int64_t n_device_routed;          /* of a device: layers that it routed itself, of up to 8 tokens; */
    int64_t n_graph_tokens, n_graphs; /* tokens that were launched as a graph, and graphs made for them; */
    int64_t n_round_trips;            /* layers of decode that the host routed, and what it did in them: */
    double waited_s, planned_s;       /* waiting for the router's logits; from there to the launch of the residents' kernels */
    int32_t n_policy_changes;
    int32_t prefetch_on, cpu_lane_on, graphs_on; /* non-zero: the next token runs with it, or is the one that tries it */
    /* What the last trial found (`adapt`): the cost of having it on, as a share of a token's time; below 0: it saves. 0: none decided yet.
     */
    double prefetch_cost, cpu_lane_cost, graphs_cost;
    int32_t n_prefetch_off, n_cpu_lane_off, n_graphs_off; /* trials that switched it off */
    moepic_text lane, policy, note;                       /* for people; valid until the next call on this thread */
    /* Of a device: what its expert cache gave up since load for contexts that found no other memory, no longer in cache_bytes; and of the
     * experts in RAM what is pinned for the link, and what is still to come (0: pinning has ended). */
    uint64_t given_back_bytes, pinned_bytes, to_pin_bytes;
} moepic_stream_stats;
/* One MoE layer, decode or prefill. A hit: all granules of a routed expert were resident; a partial hit: some; a miss: none. */
typedef struct moepic_stream_layer {
    uint32_t size;
    int32_t layer; /* number in the model */
    int64_t n_hit, n_partial, n_miss;
    int64_t n_resident, n_link, n_in_place, n_prefetched; /* granules, by how they were served */
    int64_t demand_bytes, useful_bytes, wasted_bytes, late_bytes;
    double stall_s;                     /* wall time in which every compute thread waited for bytes */
    int64_t n_guessed, n_right, n_used; /* predicted ids, those that were right, ids the router chose where there was a guess */
    int32_t prefetches;                 /* non-zero: prefetch is on in this layer */
    int32_t n_switched_off;             /* how often it lost time and was */
} moepic_stream_layer;
MOEPIC_API int32_t moepic_model_stream_stats(moepic_stream_stats* out, const moepic_model* model);
MOEPIC_API int32_t moepic_model_stream_layer(moepic_stream_layer* out, const moepic_model* model, int32_t moe_layer, int32_t prefill);
MOEPIC_API void moepic_model_reset_stream_stats(const moepic_model* model);
/* Uses of every expert since load, all MoE layers in order: [n], n as in n_profile. E_ARGUMENT when n is another. */
MOEPIC_API int32_t moepic_model_expert_uses(double* out, int64_t n, const moepic_model* model);

/* Ids of the architectures this build runs, separated by spaces; static. */
MOEPIC_API const char* moepic_architectures(void);

/* ---- contexts: one sequence of tokens over a model -------------------------------------------------------------------------------------
 */

typedef struct moepic_context moepic_context;

typedef struct moepic_stats {
    uint32_t size;
    int64_t prefill_tokens, decode_tokens; /* computed; a token computed alone is decode */
    int64_t reused_tokens;                 /* kept by moepic_context_reuse */
    double prefill_s, decode_s;
    int64_t expert_tasks; /* (expert, granule) tasks run in decode; of several tokens that a device routed, (token, expert, granule) */
    int64_t experts_used; /* (token, layer, expert) triples */
    uint64_t kv_bytes, scratch_bytes; /* reserved by this context */
    uint64_t state_bytes;             /* reserved for states of layers that keep no keys and values, checkpoints included */
} moepic_stats;

/* What a probe sees, on the thread that computes. `values` is valid only during the call. */
enum {
    MOEPIC_PROBE_FFN_INPUT = 0, /* values [n_tokens, width = n_embd]: input of router and experts (normed) */
    MOEPIC_PROBE_ROUTING = 1,   /* ids and values [n_tokens, width = n_expert_used]: experts in ascending order, and their weights */
    MOEPIC_PROBE_EXPERT_ACT = 2 /* values [n_tokens, width = granule]: act(gate) * up of one granule; ids [n_tokens]: batch rows; expert -1:
                                   a shared expert or the dense feed-forward */
};
typedef struct moepic_probe {
    int32_t kind, layer, expert, granule;
    int64_t first_position, n_tokens, width;
    const float* values;
    const int32_t* ids;
} moepic_probe;
/* Calls are serialised. A non-zero return cancels. */
typedef int32_t (*moepic_probe_fn)(const moepic_probe* probe, void* user);

MOEPIC_API void moepic_context_options_init(moepic_context_options* options);
/* Reserves KV and scratch for the worst batch at once. E_ARGUMENT, E_NO_MEMORY. */
MOEPIC_API int32_t moepic_context_create(moepic_context** out, const moepic_model* model, const moepic_context_options* options);
MOEPIC_API void moepic_context_free(moepic_context* context);
MOEPIC_API int32_t moepic_context_n_ctx(const moepic_context* context);
/* Append n tokens and compute logits: of the last token, or of all n when all_logits is non-zero.
 * E_ARGUMENT (a token id outside the vocabulary), E_CONTEXT_FULL (with counts, before any compute), E_CANCELLED (the sequence keeps the
 * tokens that were finished). */
MOEPIC_API int32_t moepic_context_eval(moepic_context* context, const int32_t* tokens, int64_t n, int32_t all_logits);
/* Logits of the last eval, row-major [n_rows, n_vocab]; valid until the next eval. */
MOEPIC_API int32_t moepic_context_logits(const float** out, int64_t* n_rows, int64_t* n_vocab, const moepic_context* context);
/* Tokens whose keys and values are held; valid until the next call on this context. */
MOEPIC_API int64_t moepic_context_tokens(const int32_t** out, const moepic_context* context);
/* Keep the first n tokens, forget the rest. Two kinds of layers can't go back everywhere: those with a window keep only it and some 512
 * positions before it, and those with a state (delta nets, short convolutions) keep checkpoints. The result is right all the same: the next
 * eval first computes again what lies between the nearest position that all layers can go on from and n (counted as prefill). */
MOEPIC_API int32_t moepic_context_truncate(moepic_context* context, int64_t n);
/* Keep the longest common prefix with `tokens`, but at most n - 1 of them, so that the last one is computed; returns how many were kept: no
 * more than layers can go on from. With states that is a checkpoint, which there is before the last token of each prompt and where each
 * prompt began; where windows are no longer kept, 0. */
MOEPIC_API int64_t moepic_context_reuse(moepic_context* context, const int32_t* tokens, int64_t n);
/* Stop the running eval at the next layer (it fails with E_CANCELLED); without a running eval, stop the next one. Any thread. */
MOEPIC_API void moepic_context_cancel(moepic_context* context);
/* Forget a cancel that hit nothing. */
MOEPIC_API void moepic_context_clear_cancel(moepic_context* context);
MOEPIC_API void moepic_context_set_progress(moepic_context* context, moepic_progress_fn progress, void* user);
MOEPIC_API void moepic_context_set_probe(moepic_context* context, moepic_probe_fn probe, void* user);
/* Record routing, in records of docs/trace-format.md, and spans of time, until switched off. What was recorded since the last call is valid
 * until the next one on this context. */
MOEPIC_API void moepic_context_set_trace(moepic_context* context, int32_t on);
MOEPIC_API int64_t moepic_context_trace(const void** out, int64_t* record_bytes, moepic_context* context);
/* kind: 0 attention, 1 router, 2 feed-forward of a layer, 3 a thread waits for bytes, 4 a granule is computed, 5 transfer, 6 transfer asked
 * for before the router spoke (both from asked for to there), 7 re-tiling. lane: the thread. Numbers that do not apply are -1. */
typedef struct moepic_event {
    int64_t start_ns, end_ns; /* a steady clock */
    uint64_t bytes;
    int64_t position;
    int32_t kind, lane, layer, expert, granule, reserved;
} moepic_event;
MOEPIC_API void moepic_context_set_timeline(moepic_context* context, int32_t on);
MOEPIC_API int64_t moepic_context_timeline(const moepic_event** out, moepic_context* context);
MOEPIC_API int32_t moepic_context_stats(moepic_stats* out, const moepic_context* context);
MOEPIC_API void moepic_context_reset_stats(moepic_context* context);
/* log softmax of one row of the last logits: of `token`, and of the top_n most likely (ids and values, descending; ties by lower id). */
MOEPIC_API int32_t moepic_context_logprobs(float* token_logprob, int32_t* top_ids, float* top_logprobs, const moepic_context* context,
                                           int64_t row, int32_t token, int32_t top_n);

/* ---- sampling
 * ---------------------------------------------------------------------------------------------------------------------------- */

typedef struct moepic_sampler moepic_sampler;

/* Order of application: logit bias, penalties, (temperature 0: arg max), top-k, typical, top-p, min-p, temperature, draw. */
typedef struct moepic_sampler_options {
    uint32_t size;
    float temperature;       /* 0: greedy */
    int32_t top_k;           /* 0: off */
    float top_p;             /* 1: off; Holtzman et al. 2020 */
    float min_p;             /* 0: off; Nguyen et al. 2024 */
    float typical_p;         /* 1: off; Meister et al. 2022 */
    float repeat_penalty;    /* 1: off; Keskar et al. 2019 */
    float presence_penalty;  /* 0: off */
    float frequency_penalty; /* 0: off */
    int32_t penalty_last_n;  /* tokens looked back; -1: all */
    uint64_t seed;
    int32_t n_bias; /* logit biases added first */
    const int32_t* bias_ids;
    const float* bias_values; /* -inf forbids */
} moepic_sampler_options;

MOEPIC_API void moepic_sampler_options_init(moepic_sampler_options* options);
/* E_ARGUMENT names the option that is out of range. */
MOEPIC_API int32_t moepic_sampler_create(moepic_sampler** out, const moepic_sampler_options* options);
MOEPIC_API void moepic_sampler_free(moepic_sampler* sampler);
/* Choose from the last row of the context's logits. Does not remember the token: see accept. */
MOEPIC_API int32_t moepic_sampler_sample(int32_t* token, moepic_sampler* sampler, const moepic_context* context);
/* The same over n_vocab logits of the caller's. */
MOEPIC_API int32_t moepic_sampler_sample_logits(int32_t* token, moepic_sampler* sampler, const float* logits, int32_t n_vocab);
/* Remember tokens for the penalties (the prompt's too, when they should count). */
MOEPIC_API int32_t moepic_sampler_accept(moepic_sampler* sampler, const int32_t* tokens, int64_t n);
MOEPIC_API void moepic_sampler_reset(moepic_sampler* sampler);

/* ---- machines: what a plan is made from ------------------------------------------------------------------------------------------------
 */

/* Bytes per second, or seconds where a name says so, over windows of one measurement. */
typedef struct moepic_spread {
    double median, min, max;
    int64_t repeats;
} moepic_spread;

typedef struct moepic_machine_options {
    uint32_t size;
    int32_t n_threads;     /* 0: all cores this process may use */
    int32_t isa;           /* -1: best of this machine; as in moepic_model_options */
    int32_t strict;        /* non-zero: E_IO when the file can't be read past the page cache; otherwise file_lane and the log say so */
    uint64_t memory_bytes; /* read, and computed from: well above the last-level cache. 0: 1 GiB */
    double seconds;        /* of each of eight measurements. 0: 3 */
    moepic_progress_fn progress; /* done and total are windows; called on the calling thread between them */
    void* user;
} moepic_machine_options;

typedef struct moepic_machine {
    uint32_t size;
    int32_t n_threads;
    const char* isa;                               /* static */
    moepic_spread memory;                          /* read by all threads */
    moepic_spread compute;                         /* weights of Q4_K granules computed from memory, as in decode, by all threads */
    moepic_spread file_small, file_large;          /* of the file, at random places: pieces of small_bytes and of large_bytes */
    moepic_spread file_together, compute_together; /* small pieces read while granules are computed: what each gets */
    moepic_spread landing;                         /* granules re-tiled from a file's rows into the kernels' layout, by all threads */
    moepic_spread file_single_s;                   /* a transfer of three small pieces, nothing else under way */
    moepic_spread job_s, handoff_s;                /* a job of all threads that does nothing; a round trip to a parked thread */
    uint64_t small_bytes, large_bytes;
    char file_lane[96]; /* how the file was read, NUL-terminated: "file: io_uring, direct" */
} moepic_machine;

MOEPIC_API void moepic_machine_options_init(moepic_machine_options* options);
/* Measure this machine, and the file system `path` lies on; the file is only read. Set out->size first. Takes eight times `seconds` and
 * what filling memory_bytes takes. E_ARGUMENT (also: the file is smaller than a piece), E_IO, E_UNSUPPORTED, E_NO_MEMORY, E_CANCELLED. */
MOEPIC_API int32_t moepic_machine_measure(moepic_machine* out, const char* path, const moepic_machine_options* options);

/* cdef: end */
#endif
