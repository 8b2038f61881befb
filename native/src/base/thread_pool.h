// A fixed set of threads that share the tasks of one job at a time. Threads spin briefly between jobs, because a decode step is a chain
// of jobs a few microseconds apart, and then park, because a machine with other work must not be burnt.
// Knows nothing of what the tasks are. Results must not depend on which thread runs a task or in which order.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace moepic {

class ThreadPool {
public:
    // n_threads counts the caller, who works too; 1 starts no thread. 0: all cores this process may use.
    explicit ThreadPool(int n_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const noexcept { return static_cast<int>(workers_.size()) + 1; }

    // Calls task(index, thread) once for each index in [0, n_tasks), thread in [0, size()); returns when all have returned.
    // Tasks must not throw. One run at a time per pool.
    template <class Task>
    void run(int64_t n_tasks, Task&& task) {
        using Body = std::remove_reference_t<Task>;
        if (n_tasks <= 0) return;
        if (n_tasks == 1 || workers_.empty()) {
            for (int64_t i = 0; i < n_tasks; ++i) task(i, 0);
            return;
        }
        const uint64_t job = start_job(
            n_tasks, [](void* body, int64_t index, int thread) { (*static_cast<Body*>(body))(index, thread); },
            const_cast<void*>(static_cast<const void*>(&task)));
        finish_job(job, n_tasks);
    }

    // The same, while the caller does `own`, which may throw: what it threw is thrown on when all tasks have returned. Tasks have to end
    // whatever becomes of `own`; the caller takes part once it is back.
    template <class Own, class Task>
    void run_beside(Own&& own, int64_t n_tasks, Task&& task) {
        using Body = std::remove_reference_t<Task>;
        if (n_tasks <= 0 || workers_.empty()) {
            own();
            for (int64_t i = 0; i < n_tasks; ++i) task(i, 0);
            return;
        }
        const uint64_t job = start_job(
            n_tasks, [](void* body, int64_t index, int thread) { (*static_cast<Body*>(body))(index, thread); },
            const_cast<void*>(static_cast<const void*>(&task)));
        std::exception_ptr thrown;
        try {
            own();
        } catch (...) {
            thrown = std::current_exception();
        }
        finish_job(job, n_tasks);
        if (thrown) std::rethrow_exception(thrown);
    }

    static int usable_cores() noexcept;  // respects the affinity mask

private:
    using Call = void (*)(void* body, int64_t index, int thread);
    uint64_t start_job(int64_t n_tasks, Call call, void* body);
    void finish_job(uint64_t job, int64_t n_tasks);  // works on it, then waits
    void work(uint64_t job, int thread);
    void worker_loop(int thread);

    // The head word is job << 32 | next index. A thread claims an index by compare-and-swap on the whole word, so one that wakes late, in
    // a later job, can't take or run anything of the wrong job. call_, body_ and n_tasks_ are written by the caller while the head is
    // closed (an index beyond all tasks); call_ and body_ are read only after a claim succeeded, which keeps that job unfinished.
    std::atomic<uint64_t> head_{0};
    std::atomic<int64_t> n_tasks_{0};
    std::atomic<int64_t> done_{0};
    std::atomic<uint32_t> signal_{0};  // bumped once per job and to stop; parked workers wait on it
    std::atomic<int> parked_{0};
    std::atomic<bool> stop_{false};
    int spins_ = 0;  // before a thread parks or gives its core away
    Call call_ = nullptr;
    void* body_ = nullptr;
    std::vector<std::thread> workers_;
};

}  // namespace moepic
