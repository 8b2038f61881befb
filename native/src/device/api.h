// What a device library offers: memory, streams, events, copies, and the steps of a forward pass (jobs.h). A device library (cuda/, built
// by nvcc or, for the emulation, by g++) is opened at run time and answers with one table of functions; nothing here mentions CUDA, so the
// core is built and runs without it.
//
// Jobs are copied by the call. Functions return 0, or a code below 0 whose text last_error() gives for the calling thread; nothing throws
// across the table. Work is asynchronous and ordered by its stream; a step that fails later is seen by the next synchronizing call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/jobs.h"

namespace moepic::device {

inline constexpr uint32_t kApiVersion = 3;

using Stream = struct StreamState*;
using Event = struct EventState*;
using Graph = struct GraphState*;

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

    // From begin_capture on, what the calling thread gives the stream does not run but becomes a graph, which launch_graph gives to a
    // stream as a whole, as often as wanted: with the arguments of then, and the memory as it is when it runs. Until end_capture the stream
    // takes part in nothing else, and the thread waits for nothing and allocates and frees nothing; end_capture fails if it did. `out`
    // null: the capture is given up.
    int32_t (*begin_capture)(Stream stream);
    int32_t (*end_capture)(Stream stream, Graph* out);
    int32_t (*launch_graph)(Graph graph, Stream stream);
    void (*free_graph)(Graph graph);

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
    int32_t (*list_tasks)(const TaskListJob& job, Stream stream);
    int32_t (*expert_intermediate)(const ExpertJob& job, Stream stream);  // act(gate x) * up x, quantized for down
    int32_t (*expert_down_few)(const ExpertJob& job, Stream stream);      // one row of partials per (entry, granule)
    int32_t (*expert_down_many)(const ExpertJob& job, Stream stream);     // granules of a run added in order; granule 0 overwrites
    int32_t (*reduce)(const ReduceJob& job, Stream stream);
};

// The one symbol of a device library.
using Entry = const Api* (*)();
inline constexpr const char* kEntryName = "moepic_device_api";

}  // namespace moepic::device
