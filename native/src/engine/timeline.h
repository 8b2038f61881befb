// What happened when: spans of a context's work, recorded while switched on. For pictures, not for decisions.
//
// Threads: record() may be called from any thread; the switch and take() belong to the thread that owns the context, between evals.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <vector>

namespace moepic {

enum class Span : int32_t {
    attention = 0,
    router = 1,
    experts = 2,   // the feed-forward of a layer, all of it
    wait = 3,      // a thread waiting for bytes
    granule = 4,   // one granule computed
    demand = 5,    // a transfer, from asked for to there
    prefetch = 6,  // the same, asked for before the router spoke
    landing = 7,   // re-tiling what was read
};

// The layout is the C API's moepic_event, and Python's numpy dtype.
struct Event {
    int64_t start_ns = 0, end_ns = 0;  // steady clock
    uint64_t bytes = 0;
    int64_t position = -1;  // of the first token of the batch
    Span kind{};
    int32_t lane = 0;  // thread, or for transfers the lane's index
    int32_t layer = -1, expert = -1, granule = -1;
    int32_t reserved = 0;
};

inline int64_t now_ns() noexcept {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Timeline {
public:
    bool is_on() const noexcept { return is_on_; }
    void turn(bool on) {
        is_on_ = on;
        if (!on) events_.clear();
    }
    void record(const Event& event) {
        if (!is_on_) return;
        const std::lock_guard lock(mutex_);
        if (events_.size() < kMostEvents) events_.push_back(event);
    }
    // Events since the last call, in the order they ended.
    std::vector<Event> take() {
        const std::lock_guard lock(mutex_);
        return std::exchange(events_, {});
    }

private:
    // 72 bytes each: a recording that nobody fetches stops at some 300 MB.
    static constexpr size_t kMostEvents = size_t{1} << 22;
    bool is_on_ = false;
    std::mutex mutex_;
    std::vector<Event> events_;
};

}  // namespace moepic
