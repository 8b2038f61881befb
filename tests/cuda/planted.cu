// Faults on purpose, each by name, to see that the emulation and the sanitizers find them; and kernels without a fault, to see that they
// find nothing there. Built and run by test_emulation.py.
//   planted NAME [DELAY_US [SEED]]    prints what the scenario computed, or the last error, and exits 0; a sanitizer that finds something
//   does not
#include <chrono>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cuda/runtime.h"
#include "cuda/simt.h"
#include "device/simt_options.h"

namespace {

using namespace moepic::device;

constexpr int kThreads = 96;

struct Job {
    float* data;
    int n;
};

// ---- without a fault -------------------------------------------------------------------------------------------------------------------

// Sum of data[0, n) into data[n]: shuffles, shared memory, barriers, an atomic, and the last block by a fence.
struct SumJob {
    const float* data;
    int n;
    float* parts;
    unsigned* n_finished;
    float* out;
};
__global__ void sum_kernel(SumJob job) {
    float* part = shared_memory<float>();
    auto* is_last = reinterpret_cast<unsigned*>(part + kThreads / 32);
    float sum = 0.0f;
    for (int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x); i < job.n; i += static_cast<int>(gridDim.x) * kThreads)
        sum += job.data[i];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float all = 0.0f;
        for (int i = 0; i < kThreads / 32; ++i) all += part[i];
        job.parts[blockIdx.x] = all;
        __threadfence();
        *is_last = atomicAdd(job.n_finished, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (*is_last && threadIdx.x == 0) {
        __threadfence();
        float all = 0.0f;
        for (unsigned i = 0; i < gridDim.x; ++i) all += job.parts[i];
        *job.out = all;
    }
}

// Many barriers: rotates shared memory by one, `n` times.
__global__ void rotate_kernel(Job job) {
    float* ring = shared_memory<float>();
    ring[threadIdx.x] = static_cast<float>(threadIdx.x);
    for (int i = 0; i < job.n; ++i) {
        __syncthreads();
        const float next = ring[(threadIdx.x + 1) % kThreads];
        __syncthreads();
        ring[threadIdx.x] = next;
    }
    job.data[blockIdx.x * kThreads + threadIdx.x] = ring[threadIdx.x];
}

// Lanes of a warp, and of halves of one, hand values on through shared memory.
__global__ void warp_kernel(Job job) {
    float* slot = shared_memory<float>();
    slot[threadIdx.x] = static_cast<float>(threadIdx.x);
    __syncwarp();
    const float other = slot[threadIdx.x ^ 1];
    const unsigned half = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
    float sum = other;
    for (int step = 8; step > 0; step /= 2) sum += __shfl_down_sync(half, sum, step, 16);
    const unsigned votes = __ballot_sync(kAllLanes, threadIdx.x % 3 == 0);
    if (threadIdx.x % 16 == 0) job.data[threadIdx.x / 16] = sum + static_cast<float>(__popc(votes)) * 1000.0f;
}

// int8 product against plain loops: prints how many of 128 sums differ.
__global__ void multiply_kernel(Job job) {
    const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
    const auto a_at = [](int row, int k) { return static_cast<int8_t>(row * 37 + k * 11 - 90); };
    const auto b_at = [](int k, int col) { return static_cast<int8_t>(k * 29 - col * 53 + 17); };
    uint32_t a[4] = {}, b[2] = {};
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) a[i] |= uint32_t{static_cast<uint8_t>(a_at(g + i % 2 * 8, i / 2 * 16 + 4 * t + j))} << (8 * j);
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j) b[i] |= uint32_t{static_cast<uint8_t>(b_at(i * 16 + 4 * t + j, g))} << (8 * j);
    int32_t d[4] = {1, 2, 3, 4};
    mma_s8(d, a, b);
    int n_wrong = 0;
    for (int i = 0; i < 4; ++i) {
        int32_t sum = i + 1;
        for (int k = 0; k < 32; ++k) sum += a_at(g + i / 2 * 8, k) * b_at(k, 2 * t + i % 2);
        n_wrong += sum != d[i];
    }
    job.data[lane] = static_cast<float>(n_wrong);
}

// ---- faults ----------------------------------------------------------------------------------------------------------------------------

__global__ void race_kernel(Job job) {
    float* part = shared_memory<float>();
    part[threadIdx.x] = 1.0f;
    job.data[threadIdx.x] = part[kThreads - 1 - threadIdx.x];  // no barrier
}
__global__ void warp_race_kernel(Job job) {
    float* part = shared_memory<float>();
    part[threadIdx.x] = 1.0f;
    const float other = __shfl_xor_sync(kAllLanes, 1.0f, 1);  // moves a register; orders no memory
    job.data[threadIdx.x] = part[threadIdx.x ^ 1] + other;
}
__global__ void block_race_kernel(Job job) {
    job.data[threadIdx.x] += 1.0f;  // all blocks, the same words
}
__global__ void shared_overrun_kernel(Job job) {
    float* part = shared_memory<float>();
    part[threadIdx.x + 1] = 1.0f;  // the last thread's is beyond
    __syncthreads();
    job.data[threadIdx.x] = part[threadIdx.x];
}
__global__ void device_overrun_kernel(Job job) {
    job.data[threadIdx.x + 1] = 1.0f;
}
// Through a pointer that the launch can't see, as a list of granules has them.
__global__ void follow_kernel(Job job) {
    job.data[threadIdx.x] = **reinterpret_cast<const float**>(job.data + 2 * kThreads);
}
__global__ void neighbour_kernel(Job job) {
    const float** slot = shared_memory<const float*>();
    float own = 1.0f;
    slot[threadIdx.x] = &own;
    __syncthreads();
    job.data[threadIdx.x] = *slot[(threadIdx.x + 1) % kThreads];
}
__global__ void fresh_shared_kernel(Job job) {
    job.data[threadIdx.x] = shared_memory<float>()[threadIdx.x];  // never written
}
__global__ void leaver_kernel(Job) {
    if (threadIdx.x == 7) return;
    __syncthreads();
}
__global__ void two_barriers_kernel(Job) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
__global__ void lacking_mask_kernel(Job) {
    __shfl_xor_sync(0x0000ffffu, 1, 1);
}
__global__ void absent_lane_kernel(Job) {
    if (threadIdx.x % 32 < 16) __shfl_xor_sync(kAllLanes, 1, 1);
}
__global__ void other_vote_kernel(Job) {
    if (threadIdx.x % 32 < 16)
        __ballot_sync(kAllLanes, 1);
    else
        __syncwarp();
}
__global__ void stuck_kernel(Job) {
    if (threadIdx.x % 32 < 16) __syncwarp();
    __syncthreads();
}
__global__ void trap_kernel(Job) {
    if (threadIdx.x == 5) __trap();
}
__device__ __attribute__((noinline)) int descend(volatile int* at, int depth) {
    volatile int frame[64];
    frame[depth % 64] = *at;
    return depth == 0 ? frame[0] : descend(frame, depth - 1) + frame[depth % 64];
}
__global__ void deep_kernel(Job job) {
    int zero = 0;
    job.data[threadIdx.x] = static_cast<float>(descend(&zero, 1 << 20));
}

// ---- scenarios -------------------------------------------------------------------------------------------------------------------------

void need(int32_t code) {
    if (code == kOk) return;
    std::printf("error %d: %s\n", code, last_error());
    std::fflush(stdout);
    std::_Exit(0);
}

struct Machine {
    Machine() {
        Info info;
        need(open(0, &info));
        need(make_stream(0, &stream));
        need(allocate_host(sizeof(float) * 4096, reinterpret_cast<void**>(&host)));
    }
    ~Machine() {
        free_stream(stream);
        release_host(host);
    }
    float* make(int n) {
        void* data = nullptr;
        need(allocate(sizeof(float) * static_cast<size_t>(n), &data));
        return static_cast<float*>(data);
    }
    void print(const float* data, int n) {
        need(copy(host, data, sizeof(float) * static_cast<size_t>(n), stream));
        need(synchronize(stream));
        for (int i = 0; i < n; ++i) std::printf("%g ", host[i]);
        std::printf("\n");
    }
    Stream stream = nullptr;
    float* host = nullptr;
};

void run_kernel(void (*kernel)(Job), int n_words, dim3 grid, dim3 block, size_t shared_words) {
    Machine machine;
    float* data = machine.make(n_words);
    need(clear(data, sizeof(float) * static_cast<size_t>(n_words), machine.stream));
    need(launch(kernel, grid, block, shared_words * sizeof(float), machine.stream, Job{data, n_words}));
    need(synchronize(machine.stream));
    machine.print(data, n_words);
    release(data);
}

void sum() {
    Machine machine;
    constexpr int kN = 1000, kBlocks = 5;
    float* data = machine.make(kN);
    float* parts = machine.make(kBlocks + 2);
    std::iota(machine.host, machine.host + kN, 0.0f);
    need(copy(data, machine.host, sizeof(float) * kN, machine.stream));
    need(clear(parts, sizeof(float) * (kBlocks + 2), machine.stream));
    auto* n_finished = reinterpret_cast<unsigned*>(parts + kBlocks);
    need(launch(sum_kernel, dim3(kBlocks), dim3(kThreads), (kThreads / 32 + 1) * sizeof(float), machine.stream,
                SumJob{data, kN, parts, n_finished, parts + kBlocks + 1}));
    need(synchronize(machine.stream));
    machine.print(parts + kBlocks + 1, 1);
    release(data);
    release(parts);
}

// The host overwrites what a copy that was not waited for still reads.
void host_race() {
    Machine machine;
    float* data = machine.make(16);
    for (int i = 0; i < 16; ++i) machine.host[i] = 1.0f;
    need(copy(data, machine.host, 64, machine.stream));
    for (int i = 0; i < 16; ++i) machine.host[i] = 2.0f;
    machine.print(data, 1);
}

// A consumer stream that does, or does not, wait for the producer's event.
void handover(bool waits) {
    Machine machine;
    Stream second = nullptr;
    Event event = nullptr;
    need(make_stream(0, &second));
    need(make_event(&event));
    float* data = machine.make(16);
    for (int i = 0; i < 16; ++i) machine.host[i] = 3.0f;
    need(clear(data, 64, machine.stream));
    need(synchronize(machine.stream));
    need(copy(data, machine.host, 64, machine.stream));
    need(record(event, machine.stream));
    if (waits) need(wait(second, event));
    need(copy(machine.host + 100, data, 64, second));
    need(synchronize(second));
    std::printf("%g\n", machine.host[100]);
    need(synchronize(machine.stream));
    free_event(event);
    free_stream(second);
    release(data);
}

// Words, then the flag: a host that sees the flag of round r must see the words of round r.
void mailbox() {
    Machine machine;
    void* raw = nullptr;
    need(allocate_host(4, &raw));
    auto* flag = static_cast<uint32_t*>(raw);
    *flag = 0;
    float* data = machine.make(300);
    int n_wrong = 0;
    for (uint32_t round = 1; round <= 20; ++round) {
        for (int i = 0; i < 300; ++i) machine.host[i] = static_cast<float>(round);
        need(copy(data, machine.host, 1200, machine.stream));
        need(post(data, 300, machine.host + 1000, flag, round, machine.stream));
        while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) != round) std::this_thread::yield();
        for (int i = 0; i < 300; ++i) n_wrong += machine.host[1000 + i] != static_cast<float>(round);
    }
    std::printf("%d wrong\n", n_wrong);
    release(data);
    release_host(raw);
}

// A kernel that is handed a pointer to the host's own memory.
void host_pointer() {
    Machine machine;
    float own = 5.0f;
    float* data = machine.make(2 * kThreads + 2);
    const float* pointer = &own;
    std::memcpy(machine.host, &pointer, sizeof pointer);
    need(copy(data + 2 * kThreads, machine.host, sizeof pointer, machine.stream));
    need(launch(follow_kernel, dim3(1), dim3(kThreads), 0, machine.stream, Job{data, 1}));
    need(synchronize(machine.stream));
    machine.print(data, 1);
}

// Adds 1 to each of data.
__global__ void count_kernel(Job job) {
    if (static_cast<int>(threadIdx.x) < job.n) job.data[threadIdx.x] += 1.0f;
}

// A clearing, a copy and a kernel, three times what they were captured once; and what may not happen in a capture.
void captured(const std::string& fault) {
    Machine machine, other;
    float* data = machine.make(3 * 16);
    Event event = nullptr;
    need(make_event(&event));
    need(record(event, other.stream));
    need(begin_capture(machine.stream));
    if (fault == "waits") (void)wait(machine.stream, event);
    if (fault == "records") (void)record(event, machine.stream);
    if (fault == "synchronizes") (void)synchronize(other.stream);
    if (fault == "allocates") {
        void* more = nullptr;
        (void)allocate(64, &more);
    }
    if (fault == "frees") release(data);
    need(clear(data, 64, machine.stream));
    need(launch(count_kernel, dim3(1), dim3(kThreads), 0, machine.stream, Job{data, 32}));
    need(copy(data + 32, data + 16, 64, machine.stream));
    Graph graph = nullptr;
    need(end_capture(machine.stream, &graph));
    std::fill_n(machine.host, 48, 5.0f);
    need(copy(data, machine.host, 3 * 64, machine.stream));
    for (int i = 0; i < 3; ++i) need(launch_graph(graph, machine.stream));
    free_graph(graph);  // while it runs
    if (fault == "frees_later") {
        need(synchronize(machine.stream));
        Graph again = nullptr;
        need(begin_capture(machine.stream));
        need(copy(data + 16, data, 64, machine.stream));
        need(end_capture(machine.stream, &again));
        release(data);
        need(launch_graph(again, machine.stream));
        need(synchronize(machine.stream));
    }
    need(copy(machine.host, data, 3 * 64, machine.stream));
    need(synchronize(machine.stream));
    for (int i = 0; i < 48; i += 16) std::printf(i ? " %g" : "%g", static_cast<double>(machine.host[i]));
    std::printf("\n");
    free_event(event);
    release(data);
}

// The host, reading the device's memory as if it were its own.
void host_reads() {
    Machine machine;
    float* data = machine.make(1024);
    std::printf("%d\n", std::memcmp(machine.host, data, static_cast<size_t>(std::stoi("4096"))) != 0);
    release(data);
}

void use_after_free() {
    Machine machine;
    float* data = machine.make(kThreads);
    release(data);
    need(launch(block_race_kernel, dim3(1), dim3(kThreads), 0, machine.stream, Job{data, kThreads}));
    need(synchronize(machine.stream));
}

// Host memory of the caller's, copied from as it is, while pinned, or pinned twice.
void callers_memory(bool pins, bool twice) {
    Machine machine;
    std::vector<float> own(16, 5.0f);
    if (pins) need(pin(own.data(), 64));
    if (twice) need(pin(own.data() + 8, 32));
    float* data = machine.make(16);
    need(copy(data, own.data(), 64, machine.stream));
    machine.print(data, 1);
    unpin(own.data());
    release(data);
}

void beyond() {
    Machine machine;
    float* data = machine.make(16);
    need(copy(data + 1, machine.host, 64, machine.stream));
}

void freed() {
    Machine machine;
    float* data = machine.make(16);
    release(data);
    need(copy(data, machine.host, 64, machine.stream));
}

void unopened() {
    std::thread([] {
        void* data = nullptr;
        need(allocate(64, &data));
    }).join();
}

// What failed once is repeated by whatever comes next, as on a GPU.
void after_failure() {
    Machine machine;
    float* data = machine.make(16);
    need(launch(trap_kernel, dim3(1), dim3(kThreads), 0, machine.stream, Job{data, 16}));
    if (synchronize(machine.stream) == kOk) return;
    need(copy(data, machine.host, 64, machine.stream));
}

bool run(const std::string& name) {
    const auto is = [&](const char* other) { return name == other; };
    if (is("sum")) return sum(), true;
    if (is("rotate")) return run_kernel(rotate_kernel, 3 * kThreads, dim3(3), dim3(kThreads), kThreads), true;
    if (is("warp")) return run_kernel(warp_kernel, kThreads / 16, dim3(1), dim3(kThreads), kThreads), true;
    if (is("multiply")) return run_kernel(multiply_kernel, 32, dim3(1), dim3(32), 0), true;
    if (is("race")) return run_kernel(race_kernel, kThreads, dim3(1), dim3(kThreads), kThreads), true;
    if (is("warp_race")) return run_kernel(warp_race_kernel, kThreads, dim3(1), dim3(kThreads), kThreads), true;
    if (is("block_race")) return run_kernel(block_race_kernel, kThreads, dim3(64), dim3(kThreads), 0), true;
    if (is("shared_overrun")) return run_kernel(shared_overrun_kernel, kThreads, dim3(1), dim3(kThreads), kThreads), true;
    if (is("device_overrun")) return run_kernel(device_overrun_kernel, kThreads, dim3(1), dim3(kThreads), 0), true;
    if (is("neighbour")) return run_kernel(neighbour_kernel, kThreads, dim3(1), dim3(kThreads), 2 * kThreads), true;
    if (is("host_pointer")) return host_pointer(), true;
    if (is("host_reads")) return host_reads(), true;
    if (is("fresh_shared")) return run_kernel(fresh_shared_kernel, kThreads, dim3(1), dim3(kThreads), kThreads), true;
    if (is("leaver")) return run_kernel(leaver_kernel, kThreads, dim3(1), dim3(kThreads), 0), true;
    if (is("two_barriers")) return run_kernel(two_barriers_kernel, kThreads, dim3(1), dim3(kThreads), 0), true;
    if (is("lacking_mask")) return run_kernel(lacking_mask_kernel, kThreads, dim3(1), dim3(kThreads), 0), true;
    if (is("absent_lane")) return run_kernel(absent_lane_kernel, kThreads, dim3(1), dim3(kThreads), 0), true;
    if (is("short_warp")) return run_kernel(warp_kernel, kThreads, dim3(1), dim3(40), kThreads), true;
    if (is("other_vote")) return run_kernel(other_vote_kernel, kThreads, dim3(1), dim3(kThreads), 0), true;
    if (is("stuck")) return run_kernel(stuck_kernel, kThreads, dim3(1), dim3(kThreads), 0), true;
    if (is("trap")) return run_kernel(trap_kernel, kThreads, dim3(2), dim3(kThreads), 0), true;
    if (is("deep")) return run_kernel(deep_kernel, 1, dim3(1), dim3(1), 0), true;
    if (is("large_block")) return run_kernel(rotate_kernel, kThreads, dim3(1), dim3(1025), kThreads), true;
    if (is("large_shared")) return run_kernel(rotate_kernel, kThreads, dim3(1), dim3(kThreads), (64 << 10) / 4 + 1), true;
    if (is("host_race")) return host_race(), true;
    if (is("handover")) return handover(true), true;
    if (is("no_handover")) return handover(false), true;
    if (is("mailbox")) return mailbox(), true;
    if (is("pageable")) return callers_memory(false, false), true;
    if (is("pinned")) return callers_memory(true, false), true;
    if (is("pinned_twice")) return callers_memory(true, true), true;
    if (is("beyond")) return beyond(), true;
    if (is("freed")) return freed(), true;
    if (is("unopened")) return unopened(), true;
    if (is("after_failure")) return after_failure(), true;
    if (name.starts_with("captured")) return captured(name == "captured" ? "" : name.substr(sizeof "captured")), true;
    if (is("use_after_free")) return use_after_free(), true;
    return false;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) return 2;
    SimtOptions options;
    if (argc > 2) options.most_delay_us = std::stoi(argv[2]);
    if (argc > 3) options.seed = std::stoull(argv[3]);
    moepic_simt_set_options(&options);
    return run(argv[1]) ? 0 : 2;
}
