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

typedef struct moepic_model_options {
    uint32_t size;
    int32_t n_threads;  /* for loading; 0: all cores this process may use */
    int32_t isa;        /* -1: best of this machine; 0 scalar, 1 AVX2, 2 AVX-512. E_UNSUPPORTED when this machine can't */
    int32_t granule;    /* neurons per granule; 0: the rule of docs/architecture.md. Results depend on it in the last bits, so it is an
                           explicit choice */
    int32_t strict;     /* non-zero: any downgrade is an error instead of a warning */
    uint64_t ram_bytes; /* refuse, with E_BUDGET, to hold more weights than this in memory; 0: no limit */
    moepic_progress_fn progress;
    void* user;
} moepic_model_options;

typedef struct moepic_model_info {
    uint32_t size;
    moepic_text architecture; /* GGUF id */
    int32_t n_layer, n_embd, n_vocab, n_ctx_train;
    int32_t n_head, n_head_kv, head_dim_k, head_dim_v; /* of the first layer */
    int32_t n_expert, n_expert_used;                   /* 0: dense */
    uint64_t n_params;
    uint64_t file_bytes;
    uint64_t weight_bytes;           /* in memory */
    uint64_t expert_bytes;           /* the routed experts' part of weight_bytes */
    uint64_t active_bytes;           /* weights read for one decoded token */
    uint64_t kv_bytes_per_token_f16; /* of layers that see every position */
    uint64_t kv_window_bytes_f16;    /* of layers with a window: the windows, whatever the context */
    const char* isa;                 /* kernels in use, static */
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
/* Whether this build would load the file: reads the configuration and places every tensor, touches no weights. Fails with the code and text
 * that moepic_model_load would. */
MOEPIC_API int32_t moepic_model_check(const moepic_file* file);
/* Bytes of keys and values in F16 that a model of this file needs: per token of context, and in windows whatever the context. Fails as
 * moepic_model_check does where the configuration is the reason. */
MOEPIC_API int32_t moepic_model_kv_need(uint64_t* per_token, uint64_t* in_windows, const moepic_file* file);
/* The file's metadata; borrowed, valid while the model lives. */
MOEPIC_API const moepic_file* moepic_model_file(const moepic_model* model);
/* Ids of the architectures this build runs, separated by spaces; static. */
MOEPIC_API const char* moepic_architectures(void);

/* ---- contexts: one sequence of tokens over a model -------------------------------------------------------------------------------------
 */

typedef struct moepic_context moepic_context;

typedef struct moepic_context_options {
    uint32_t size;
    int32_t n_ctx;     /* positions; 0: what the model was trained for, at most 4096 */
    int32_t n_batch;   /* tokens computed together in prefill; 0: 512 */
    int32_t n_threads; /* 0: all cores this process may use */
    int32_t kv_type;   /* GGUF type id of keys and values: 1 F16 (default), 8 Q8_0 */
} moepic_context_options;

typedef struct moepic_stats {
    uint32_t size;
    int64_t prefill_tokens, decode_tokens; /* computed; a token computed alone is decode */
    int64_t reused_tokens;                 /* kept by moepic_context_reuse */
    double prefill_s, decode_s;
    int64_t expert_tasks;             /* (expert, granule) tasks run in decode */
    int64_t experts_used;             /* (token, layer, expert) triples */
    uint64_t kv_bytes, scratch_bytes; /* reserved by this context */
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
/* Keep the first n tokens, forget the rest. Layers with a window keep only it and some 512 positions before it: going further back is
 * right, too, but the next eval computes the n tokens again first (counted as prefill). */
MOEPIC_API int32_t moepic_context_truncate(moepic_context* context, int64_t n);
/* Keep the longest common prefix with `tokens`, but at most n - 1 of them, so that the last one is computed; returns how many were kept
 * (0 where it lies further back than windows are kept). */
MOEPIC_API int64_t moepic_context_reuse(moepic_context* context, const int32_t* tokens, int64_t n);
/* Stop the running eval at the next layer (it fails with E_CANCELLED); without a running eval, stop the next one. Any thread. */
MOEPIC_API void moepic_context_cancel(moepic_context* context);
/* Forget a cancel that hit nothing. */
MOEPIC_API void moepic_context_clear_cancel(moepic_context* context);
MOEPIC_API void moepic_context_set_progress(moepic_context* context, moepic_progress_fn progress, void* user);
MOEPIC_API void moepic_context_set_probe(moepic_context* context, moepic_probe_fn probe, void* user);
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

/* cdef: end */
#endif
