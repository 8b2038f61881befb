// Streams are threads with a queue; events are marks in it. Nothing orders two streams but events, and with SimtOptions::most_delay_us work
// begins late by random times, so what is not waited for is not there yet.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <set>
#include <thread>
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

    void push(std::function<void()> work) {
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
    void run(Grid& grid);

    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> queue;
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
                const std::function<void()> next = std::move(queue.front());
                queue.pop_front();
                lock.unlock();
                next();
            }
            lock.lock();
            is_busy = false;
            changed.notify_all();
        }
    }
};

// Blocks in shuffled order over the pool's threads: what depends on an order shows.
void CUstream_st::run(Grid& grid) {
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

cudaError_t check_range(const char* name, const void* data, size_t bytes) {
    if (const std::string why = Device::get().why_outside(data, bytes); !why.empty())
        return fail_call(cudaErrorInvalidValue, cat(name, " ", why));
    return cudaSuccess;
}

}  // namespace

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
    cudaStream_t stream = config.stream;
    const auto* bytes = static_cast<const std::byte*>(params);
    Grid work{grid, block, config.dynamicSmemBytes, 0, call, {bytes, bytes + n_bytes}};
    stream->push([stream, work = std::move(work)]() mutable {
        if (Device::get().has_failed()) return;
        stream->loiter();
        stream->run(work);
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
    {
        const std::lock_guard lock(g_streams_mutex);
        if (streams().erase(stream) == 0) return fail_call(cudaErrorInvalidResourceHandle, "no such stream");
    }
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (const cudaError_t result = check_stream(stream); result != cudaSuccess) return result;
    stream->finish();
    return check_device();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (const cudaError_t result = check_stream(stream); result != cudaSuccess) return result;
    if (std::shared_ptr<Record> record = event->get(); record != nullptr) stream->push([record] { record->wait(); });
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
    if (const cudaError_t result = check_stream(stream); result != cudaSuccess) return result;
    auto record = std::make_shared<Record>();
    {
        const std::lock_guard lock(event->mutex);
        event->last = record;
    }
    stream->push([record] { record->finish(); });
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    const std::shared_ptr<Record> record = event->get();
    return record == nullptr || record->is_reached() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
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
    stream->push([=] {
        if (Device::get().has_failed()) return;
        stream->loiter();
        copy_bytes(to, from, bytes);
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
    if (const cudaError_t result = check_stream(stream); result != cudaSuccess) return result;
    if (bytes == 0) return cudaSuccess;
    if (const cudaError_t result = check_range("the memory to clear", data, bytes); result != cudaSuccess) return result;
    stream->push([=] {
        if (Device::get().has_failed()) return;
        stream->loiter();
        set_bytes(data, value, bytes);
    });
    return cudaSuccess;
}
