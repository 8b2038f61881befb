// The runtime half of the table over the CUDA runtime. Nothing here throws; a failing call leaves its text for the calling thread.
#include <cstdio>
#include <cstring>

#include "cuda/runtime.h"
#include "cuda/simt.h"

namespace moepic::device {
namespace {

thread_local char t_error[1024] = "";

cudaEvent_t native(Event event) {
    return reinterpret_cast<cudaEvent_t>(event);
}

cudaGraphExec_t native(Graph graph) {
    return reinterpret_cast<cudaGraphExec_t>(graph);
}

// Words to mapped memory, then the flag: the host that sees the flag sees the words. One block, because the words of a mailbox are few and
// a second block would need a count between the blocks and the flag.
constexpr unsigned kPostThreads = 256;
struct PostJob {
    const uint32_t* from;
    size_t n;
    uint32_t* to;
    uint32_t* flag;
    uint32_t value;
};
__global__ void post_kernel(PostJob job) {
    for (size_t i = threadIdx.x; i < job.n; i += blockDim.x) job.to[i] = job.from[i];
    __syncthreads();  // all words before the release, which passes on what the barrier has ordered before it
    if (threadIdx.x == 0) store_release(job.flag, job.value);
}

}  // namespace

int32_t refuse(int32_t code, const char* text) {
    std::snprintf(t_error, sizeof t_error, "%s", text);
    return code;
}

int32_t check(cudaError_t result, const char* what) {
    if (result == cudaSuccess) return kOk;
    const char* text = result == cudaErrorInsufficientDriver ? "this machine has no NVIDIA driver, or one older than this build's CUDA"
                                                             : cudaGetErrorString(result);
    std::snprintf(t_error, sizeof t_error, "cuda: %s: %s", what, text);
    (void)cudaGetLastError();  // or the next call would report it again
    switch (result) {
        case cudaErrorMemoryAllocation:
            return kNoMemory;
        case cudaErrorNoDevice:
        case cudaErrorInsufficientDriver:
        case cudaErrorInvalidDevice:
            return kNoDevice;
        default:
            return kFailed;
    }
}

const char* last_error() {
    return t_error;
}

int32_t count(int32_t* n) {
    return check(cudaGetDeviceCount(n), "counting devices");
}

int32_t open(int32_t index, Info* info) {
    cudaDeviceProp properties;
    if (const int32_t code = check(cudaGetDeviceProperties(&properties, index), "asking for a device's properties"); code != kOk)
        return code;
    if (!properties.canMapHostMemory || !properties.canUseHostPointerForRegisteredMem)
        return refuse(kUnsupported,
                      "cuda: this device can't read pinned host memory at the host's addresses, which streaming of experts needs");
    if (const int32_t code = use(index); code != kOk) return code;
    *info = {};
    std::snprintf(info->name, sizeof info->name, "%.127s", properties.name);
    info->index = index;
    info->major = properties.major;
    info->minor = properties.minor;
    info->n_sm = properties.multiProcessorCount;
    info->is_emulated = kIsEmulated;
    return memory(&info->free_bytes, &info->total_bytes);
}

int32_t use(int32_t index) {
    return check(cudaSetDevice(index), "choosing a device");
}

int32_t memory(uint64_t* free_bytes, uint64_t* total_bytes) {
    size_t free_size = 0, total_size = 0;
    const int32_t code = check(cudaMemGetInfo(&free_size, &total_size), "asking for free memory");
    if (code == kOk) *free_bytes = free_size, *total_bytes = total_size;
    return code;
}

int32_t allocate(size_t bytes, void** out) {
    return check(cudaMalloc(out, bytes), "allocating device memory");
}

// A release can only fail where the device has failed before, which its next call says.
void release(void* data) {
    (void)cudaFree(data);
}

int32_t allocate_host(size_t bytes, void** out) {
    return check(cudaHostAlloc(out, bytes, cudaHostAllocPortable | cudaHostAllocMapped), "allocating pinned memory");
}

void release_host(void* data) {
    (void)cudaFreeHost(data);
}

int32_t pin(void* data, size_t bytes) {
    return check(cudaHostRegister(data, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped), "pinning memory");
}

void unpin(void* data) {
    (void)cudaHostUnregister(data);
}

// Not blocking: work here neither waits for the default stream, which nobody uses, nor makes it wait.
int32_t make_stream(int32_t priority, Stream* out) {
    cudaStream_t stream = nullptr;
    const int32_t code = check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority), "making a stream");
    *out = reinterpret_cast<Stream>(stream);
    return code;
}

void free_stream(Stream stream) {
    if (stream != nullptr) (void)cudaStreamDestroy(native(stream));
}

int32_t synchronize(Stream stream) {
    return check(cudaStreamSynchronize(native(stream)), "waiting for a stream");
}

int32_t make_event(Event* out) {
    cudaEvent_t event = nullptr;
    const int32_t code = check(cudaEventCreateWithFlags(&event, cudaEventDefault), "making an event");
    *out = reinterpret_cast<Event>(event);
    return code;
}

void free_event(Event event) {
    if (event != nullptr) (void)cudaEventDestroy(native(event));
}

int32_t record(Event event, Stream stream) {
    return check(cudaEventRecord(native(event), native(stream)), "recording an event");
}

int32_t wait(Stream stream, Event event) {
    return check(cudaStreamWaitEvent(native(stream), native(event), 0), "making a stream wait");
}

int32_t is_done(Event event, int32_t* out) {
    const cudaError_t result = cudaEventQuery(native(event));
    *out = result == cudaSuccess;
    return result == cudaErrorNotReady ? kOk : check(result, "asking for an event");
}

int32_t wait_host(Event event) {
    return check(cudaEventSynchronize(native(event)), "waiting for an event");
}

int32_t elapsed(Event from, Event to, double* seconds) {
    float ms = 0.0f;
    const int32_t code = check(cudaEventElapsedTime(&ms, native(from), native(to)), "timing between events");
    *seconds = 1e-3 * static_cast<double>(ms);
    return code;
}

// Of this thread alone: others allocate, pin and wait meanwhile.
int32_t begin_capture(Stream stream) {
    return check(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal), "beginning to capture a stream");
}

int32_t end_capture(Stream stream, Graph* out) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    int32_t code = check(cudaStreamEndCapture(native(stream), &graph), "capturing a stream");
    if (code == kOk && out != nullptr) code = check(cudaGraphInstantiate(&exec, graph, 0), "making a graph");
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    if (out != nullptr) *out = reinterpret_cast<Graph>(exec);
    return code;
}

int32_t launch_graph(Graph graph, Stream stream) {
    return check(cudaGraphLaunch(native(graph), native(stream)), "launching a graph");
}

void free_graph(Graph graph) {
    if (graph != nullptr) (void)cudaGraphExecDestroy(native(graph));
}

int32_t copy(void* to, const void* from, size_t bytes, Stream stream) {
    return check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native(stream)), "copying");
}

int32_t clear(void* data, size_t bytes, Stream stream) {
    return check(cudaMemsetAsync(data, 0, bytes, native(stream)), "clearing memory");
}

int32_t post(const void* from, size_t n_dwords, void* mapped, uint32_t* flag, uint32_t value, Stream stream) {
    const PostJob job{static_cast<const uint32_t*>(from), n_dwords, static_cast<uint32_t*>(mapped), flag, value};
    return launch(post_kernel, dim3(1), dim3(kPostThreads), 0, stream, job);
}

}  // namespace moepic::device
