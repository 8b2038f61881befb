// Streams are threads with a queue; events are marks in it. Nothing orders two streams but events, and with SimtOptions::most_delay_us work
// begins late by random times, so what is not waited for is not there yet. A graph is a queue's work, kept to be given again.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/thread_pool.h"
#include "block.h"
#include "device.h"
#include "random.h"
#include "sanitizers.h"

namespace moepic::simt {
namespace {

// One passing of an event's mark. Written by the stream's thread, once.
struct Record {
    std::mutex mutex;
    std::condition_variable changed;
    bool is_done = false;
    std::chrono::steady_clock::time_point at;

    void finish() {
        const std::lock_guard lock(mutex);
        at = std::chrono::steady_clock::now();
        is_done = true;
        changed.notify_all();
    }
    void wait() {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return is_done; });
    }
    bool is_reached() {
        const std::lock_guard lock(mutex);
        return is_done;
    }
};

using Work = std::function<void(CUstream_st&)>;

// What a thread gives a stream between the beginning and the end of a capture.
struct Capture {
    CUstream_st* stream;
    std::vector<Work> works;
    std::string fault;  // what it did that it must not, first of all; empty: nothing
};
thread_local Capture* t_capture = nullptr;  // a thread captures one stream at a time here

std::mutex g_streams_mutex;
std::set<CUstream_st*>& streams() {
    static std::set<CUstream_st*>& all = *new std::set<CUstream_st*>;
    return all;
}

}  // namespace
}  // namespace moepic::simt

using namespace moepic::simt;
using moepic::cat;

struct CUevent_st {
    std::mutex mutex;
    std::shared_ptr<Record> last;  // null: never recorded, which counts as reached

    std::shared_ptr<Record> get() {
        const std::lock_guard lock(mutex);
        return last;
    }
};

struct CUgraph_st {
    std::vector<Work> works;
};
struct CUgraphExec_st {
    std::shared_ptr<const std::vector<Work>> works;  // one that runs outlives its graph
};

struct CUstream_st {
    CUstream_st() : worker([this] { work(); }) {}
    ~CUstream_st() {
        {
            const std::lock_guard lock(mutex);
            stops = true;
        }
        changed.notify_all();
        worker.join();
    }

    // To the queue, or to the capture of the calling thread.
    void give(Work work) {
        if (t_capture != nullptr && t_capture->stream == this) {
            t_capture->works.push_back(std::move(work));
        } else {
            push(std::move(work));
        }
    }
    void push(Work work) {
        {
            const std::lock_guard lock(mutex);
            queue.push_back(std::move(work));
        }
        changed.notify_all();
    }
    void finish() {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return queue.empty() && !is_busy; });
    }
    void loiter() { Device::get().loiter(++n_waits + reinterpret_cast<uintptr_t>(this)); }  // on the worker
    void run(Grid grid);

    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Work> queue;
    bool is_busy = false, stops = false;
    // The worker's own.
    std::unique_ptr<moepic::ThreadPool> pool;
    uint64_t n_waits = 0;
    std::thread worker;  // last: it uses all above

private:
    void work() {
        std::unique_lock lock(mutex);
        for (;;) {
            changed.wait(lock, [&] { return stops || !queue.empty(); });
            if (queue.empty()) return;
            is_busy = true;
            {
                const Work next = std::move(queue.front());
                queue.pop_front();
                lock.unlock();
                next(*this);
            }
            lock.lock();
            is_busy = false;
            changed.notify_all();
        }
    }
};

// Blocks in shuffled order over the pool's threads: what depends on an order shows.
void CUstream_st::run(Grid grid) {
    const SimtOptions options = Device::get().options();
    if (pool == nullptr || pool->size() != options.n_threads) pool = std::make_unique<moepic::ThreadPool>(options.n_threads);
    std::vector<uint32_t> order(size_t{grid.grid.x} * grid.grid.y * grid.grid.z);
    std::iota(order.begin(), order.end(), 0);
    grid.seed = random_of(options.seed + ++n_waits);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_of(grid.seed + i) % i]);
    pool->run(static_cast<int64_t>(order.size()), [&](int64_t i, int) {
        if (Device::get().has_failed()) return;
        const uint32_t block = order[i];
        if (const std::string failure = run_block(grid, block); !failure.empty())
            Device::get().fail(cat("block (", block % grid.grid.x, ", ", block / grid.grid.x % grid.grid.y, ", ",
                                   block / grid.grid.x / grid.grid.y, "): ", failure));
    });
}

namespace moepic::simt {

void finish_streams() {
    const std::lock_guard lock(g_streams_mutex);
    for (CUstream_st* stream : streams()) stream->finish();
}

namespace {

cudaError_t check_stream(cudaStream_t stream) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    const std::lock_guard lock(g_streams_mutex);
    if (!streams().contains(stream)) return fail_call(cudaErrorInvalidResourceHandle, "no such stream (there is no default one here)");
    return cudaSuccess;
}

// As check_stream, of a call that can't be part of a capture.
cudaError_t check_free_stream(cudaStream_t stream, const char* call) {
    if (const cudaError_t result = check_stream(stream); result != cudaSuccess) return result;
    return check_uncaptured(call);
}

cudaError_t check_range(const char* name, const void* data, size_t bytes) {
    if (const std::string why = Device::get().why_outside(data, bytes); !why.empty())
        return fail_call(cudaErrorInvalidValue, cat(name, " ", why));
    return cudaSuccess;
}

// Of a copy or a clearing that runs: a graph may be launched when its memory is gone.
bool is_there(const char* name, const void* data, size_t bytes) {
    const std::string why = Device::get().why_outside(data, bytes);
    if (!why.empty()) Device::get().fail(cat("a graph: ", name, " ", why));
    return why.empty();
}

}  // namespace

cudaError_t check_uncaptured(const char* call) {
    if (t_capture == nullptr) return cudaSuccess;
    if (t_capture->fault.empty()) t_capture->fault = cat(call, " while the thread captures a stream");
    return fail_call(cudaErrorStreamCaptureUnsupported, cat(call, " while the thread captures a stream"));
}

cudaError_t launch(const cudaLaunchConfig_t& config, void (*call)(const void* params), const void* params, size_t n_bytes) {
    if (const cudaError_t result = check_stream(config.stream); result != cudaSuccess) return result;
    const auto shape = [](dim3 d) { return cat("(", d.x, ", ", d.y, ", ", d.z, ")"); };
    const dim3 grid = config.gridDim, block = config.blockDim;
    if (block.x == 0 || block.y == 0 || block.z == 0 || uint64_t{block.x} * block.y * block.z > 1024 || block.z > 64)
        return fail_call(cudaErrorInvalidConfiguration,
                         cat("block ", shape(block), " has no thread, more than 1024, or more than 64 in z"));
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return fail_call(cudaErrorInvalidConfiguration, cat("grid ", shape(grid), " has no block, or more than 65535 in y or z"));
    if (config.dynamicSmemBytes > size_t{64} << 10)
        return fail_call(cudaErrorInvalidConfiguration, cat(config.dynamicSmemBytes, " bytes of shared memory; sm_75 has 64 KiB"));
    if (Device::get().fails_launch()) return fail_call(cudaErrorLaunchFailure, "launch failed (asked for by a test)");
    if (Device::get().starves_launch()) return fail_call(cudaErrorMemoryAllocation, "out of memory (asked for by a test)");
    const auto* bytes = static_cast<const std::byte*>(params);
    config.stream->give([work = Grid{grid, block, config.dynamicSmemBytes, 0, call, {bytes, bytes + n_bytes}}](CUstream_st& stream) {
        if (Device::get().has_failed()) return;
        stream.loiter();
        stream.run(work);
    });
    return cudaSuccess;
}

}  // namespace moepic::simt

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
    return check_device();  // launch() knows the most a kernel may ask for
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned, int) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    const std::lock_guard lock(g_streams_mutex);
    *out = *streams().insert(new CUstream_st).first;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (const cudaError_t result = check_uncaptured("destroying a stream"); result != cudaSuccess) return result;
    {
        const std::lock_guard lock(g_streams_mutex);
        if (streams().erase(stream) == 0) return fail_call(cudaErrorInvalidResourceHandle, "no such stream");
    }
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (const cudaError_t result = check_free_stream(stream, "waiting for a stream"); result != cudaSuccess) return result;
    stream->finish();
    return check_device();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (const cudaError_t result = check_free_stream(stream, "making a stream wait"); result != cudaSuccess) return result;
    if (std::shared_ptr<Record> record = event->get(); record != nullptr) stream->push([record](CUstream_st&) { record->wait(); });
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    *out = new CUevent_st;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (const cudaError_t result = check_free_stream(stream, "recording an event"); result != cudaSuccess) return result;
    auto record = std::make_shared<Record>();
    {
        const std::lock_guard lock(event->mutex);
        event->last = record;
    }
    stream->push([record](CUstream_st&) { record->finish(); });
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    if (const cudaError_t result = check_uncaptured("asking for an event"); result != cudaSuccess) return result;
    const std::shared_ptr<Record> record = event->get();
    return record == nullptr || record->is_reached() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    if (const cudaError_t result = check_uncaptured("waiting for an event"); result != cudaSuccess) return result;
    if (const std::shared_ptr<Record> record = event->get(); record != nullptr) record->wait();
    return check_device();
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    const std::shared_ptr<Record> first = from->get(), last = to->get();
    if (first == nullptr || last == nullptr) return fail_call(cudaErrorInvalidResourceHandle, "the event was never recorded");
    if (!first->is_reached() || !last->is_reached()) return cudaErrorNotReady;
    *ms = std::chrono::duration<float, std::milli>(last->at - first->at).count();
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    if (const cudaError_t result = check_stream(stream); result != cudaSuccess) return result;
    if (bytes == 0) return cudaSuccess;
    if (const cudaError_t result = check_range("the target of a copy", to, bytes); result != cudaSuccess) return result;
    if (const cudaError_t result = check_range("the source of a copy", from, bytes); result != cudaSuccess) return result;
    if (Device::get().fails_copy()) return fail_call(cudaErrorLaunchFailure, "copy failed (asked for by a test)");
    stream->give([=](CUstream_st& own) {
        if (Device::get().has_failed() || !is_there("the target of a copy", to, bytes) || !is_there("the source of a copy", from, bytes))
            return;
        own.loiter();
        copy_bytes(to, from, bytes);
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
    if (const cudaError_t result = check_stream(stream); result != cudaSuccess) return result;
    if (bytes == 0) return cudaSuccess;
    if (const cudaError_t result = check_range("the memory to clear", data, bytes); result != cudaSuccess) return result;
    stream->give([=](CUstream_st& own) {
        if (Device::get().has_failed() || !is_there("the memory to clear", data, bytes)) return;
        own.loiter();
        set_bytes(data, value, bytes);
    });
    return cudaSuccess;
}

// Stricter than CUDA, which would make events recorded in a capture, and streams that wait for them, part of it.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (const cudaError_t result = check_free_stream(stream, "beginning a capture"); result != cudaSuccess) return result;
    t_capture = new Capture{stream, {}, {}};
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* out) {
    *out = nullptr;
    if (t_capture == nullptr || t_capture->stream != stream)
        return fail_call(cudaErrorStreamCaptureWrongThread, "this thread captures no such stream");
    const std::unique_ptr<Capture> capture(std::exchange(t_capture, nullptr));
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    if (!capture->fault.empty()) return fail_call(cudaErrorStreamCaptureInvalidated, cat("the capture is lost: ", capture->fault));
    *out = new CUgraph_st{std::move(capture->works)};
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    if (Device::get().fails_allocation()) return fail_call(cudaErrorMemoryAllocation, "out of memory (asked for by a test)");
    *out = new CUgraphExec_st{std::make_shared<const std::vector<Work>>(graph->works)};
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    if (const cudaError_t result = check_free_stream(stream, "launching a graph"); result != cudaSuccess) return result;
    if (Device::get().fails_launch()) return fail_call(cudaErrorLaunchFailure, "launch failed (asked for by a test)");
    stream->push([works = graph->works](CUstream_st& own) {
        for (const Work& work : *works) work(own);
    });
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete graph;
    return cudaSuccess;
}
