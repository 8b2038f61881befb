#include "measure/handing.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace moepic::measure {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kParked = std::chrono::microseconds(200);  // between two requests, as between two layers that miss something

double since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Repeats once() for about `seconds`; the median of what it returns, since one that was interrupted says nothing.
template <class Once>
double median_over(double seconds, Once&& once) {
    std::vector<double> found;
    const auto start = Clock::now();
    do found.push_back(once());
    while (since(start) < seconds);
    const auto middle = found.begin() + static_cast<std::ptrdiff_t>(found.size() / 2);
    std::nth_element(found.begin(), middle, found.end());
    return *middle;
}

}  // namespace

double job_s(ThreadPool& pool, double seconds) {
    return median_over(seconds, [&] {
        const auto start = Clock::now();
        std::atomic<int> n_begun{0};
        // Each thread stays at its task until all have one: alone, the caller would be done before another looks.
        pool.run(pool.size(), [&](int64_t, int) {
            n_begun.fetch_add(1, std::memory_order_relaxed);
            while (n_begun.load(std::memory_order_relaxed) < pool.size()) std::this_thread::yield();
        });
        return since(start);
    });
}

double handoff_s(double seconds) {
    std::mutex mutex;
    std::condition_variable asked, answered;
    enum class Turn { mine, theirs, over } turn = Turn::mine;
    std::thread other([&] {
        std::unique_lock lock(mutex);
        for (;;) {
            asked.wait(lock, [&] { return turn != Turn::mine; });
            if (turn == Turn::over) return;
            turn = Turn::mine;
            answered.notify_one();
        }
    });
    const double found = median_over(seconds, [&] {
        std::this_thread::sleep_for(kParked);
        std::unique_lock lock(mutex);
        const auto start = Clock::now();
        turn = Turn::theirs;
        asked.notify_one();
        answered.wait(lock, [&] { return turn == Turn::mine; });
        return since(start);
    });
    {
        const std::lock_guard lock(mutex);
        turn = Turn::over;
    }
    asked.notify_one();
    other.join();
    return found;
}

}  // namespace moepic::measure
