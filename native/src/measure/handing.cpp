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

}  // namespace

double job_s(ThreadPool& pool, double seconds) {
    constexpr int kJobs = 64;  // between two looks at the clock
    const auto start = Clock::now();
    int64_t n = 0;
    do {
        for (int i = 0; i < kJobs; ++i) {
            std::atomic<int> n_begun{0};
            // Each thread stays at its task until all have one: alone, the caller would be done before another looks.
            pool.run(pool.size(), [&](int64_t, int) {
                n_begun.fetch_add(1, std::memory_order_relaxed);
                while (n_begun.load(std::memory_order_relaxed) < pool.size()) std::this_thread::yield();
            });
        }
        n += kJobs;
    } while (since(start) < seconds);
    return since(start) / static_cast<double>(n);
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
    std::vector<double> trips;
    const auto start = Clock::now();
    do {
        std::this_thread::sleep_for(kParked);
        std::unique_lock lock(mutex);
        const auto asked_at = Clock::now();
        turn = Turn::theirs;
        asked.notify_one();
        answered.wait(lock, [&] { return turn == Turn::mine; });
        trips.push_back(since(asked_at));
    } while (since(start) < seconds);
    {
        const std::lock_guard lock(mutex);
        turn = Turn::over;
    }
    asked.notify_one();
    other.join();
    std::nth_element(trips.begin(), trips.begin() + static_cast<std::ptrdiff_t>(trips.size() / 2), trips.end());
    return trips[trips.size() / 2];
}

}  // namespace moepic::measure
