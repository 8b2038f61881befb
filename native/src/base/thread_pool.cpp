#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <system_error>

#include "base/error.h"

namespace moepic {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

// About 20 to 60 microseconds of pauses: longer than the gap between two jobs of a decode step, far shorter than a scheduler tick. None
// where threads outnumber the cores: who spins there keeps somebody from the work that is waited for.
constexpr int kSpins = 1500;
// An index no job has.
constexpr uint64_t kClosed = 0xffffffffu;

}  // namespace

int ThreadPool::usable_cores() noexcept {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max(1u, std::thread::hardware_concurrency());
}

ThreadPool::ThreadPool(int n_threads) {
    if (n_threads < 0 || n_threads > 1024) fail(Code::argument, "threads: expected 0 (all cores) to 1024, found ", n_threads);
    if (n_threads == 0) n_threads = usable_cores();
    spins_ = n_threads <= usable_cores() ? kSpins : 0;
    workers_.reserve(static_cast<size_t>(n_threads - 1));
    try {
        for (int i = 1; i < n_threads; ++i) workers_.emplace_back([this, i] { worker_loop(i); });
    } catch (const std::system_error& error) {
        stop_.store(true);
        signal_.fetch_add(1);
        signal_.notify_all();
        for (std::thread& worker : workers_) worker.join();
        fail(Code::no_memory, "threads: could not start thread ", workers_.size() + 1, " of ", n_threads, ": ", error.what());
    }
}

ThreadPool::~ThreadPool() {
    stop_.store(true);
    signal_.fetch_add(1);
    signal_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

uint64_t ThreadPool::start_job(int64_t n_tasks, Call call, void* body) {
    const uint64_t job = ((head_.load(std::memory_order_relaxed) >> 32) + 1) & 0xffffffffu;
    // Close the head before the job is described: a thread still late in the last job would take its next index for one of this job as soon
    // as it saw the larger n_tasks_.
    head_.store(job << 32 | kClosed, std::memory_order_release);
    call_ = call;
    body_ = body;
    n_tasks_.store(n_tasks, std::memory_order_release);  // who sees it sees the closed head, too, so its claim fails
    done_.store(0, std::memory_order_relaxed);
    head_.store(job << 32, std::memory_order_release);
    signal_.fetch_add(1);  // seq_cst, as is parked_: either we see the parked worker or it sees the new signal
    if (parked_.load() > 0) signal_.notify_all();
    return job;
}

void ThreadPool::finish_job(uint64_t job, int64_t n_tasks) {
    work(job, 0);
    // The last tasks run elsewhere. They are short, but their thread may have lost its core: spin first, then give ours away.
    for (int spin = 0; done_.load(std::memory_order_acquire) != n_tasks; ++spin) {
        if (spin < spins_) {
            relax();
        } else {
            std::this_thread::yield();
        }
    }
}

void ThreadPool::work(uint64_t job, int thread) {
    for (;;) {
        uint64_t head = head_.load(std::memory_order_acquire);
        int64_t index = 0;
        do {
            if ((head >> 32) != job) return;
            index = static_cast<int64_t>(head & 0xffffffffu);
            if (index >= n_tasks_.load(std::memory_order_acquire)) return;
        } while (!head_.compare_exchange_weak(head, head + 1, std::memory_order_acq_rel, std::memory_order_acquire));
        call_(body_, index, thread);
        done_.fetch_add(1, std::memory_order_acq_rel);
    }
}

void ThreadPool::worker_loop(int thread) {
    uint32_t seen = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
        uint32_t now = signal_.load(std::memory_order_acquire);
        for (int spin = 0; now == seen && spin < spins_; ++spin) {
            relax();
            now = signal_.load(std::memory_order_acquire);
        }
        if (now == seen) {
            parked_.fetch_add(1);
            while ((now = signal_.load()) == seen) signal_.wait(seen);
            parked_.fetch_sub(1);
        }
        seen = now;
        if (stop_.load(std::memory_order_relaxed)) return;
        work(head_.load(std::memory_order_acquire) >> 32, thread);
    }
}

}  // namespace moepic
