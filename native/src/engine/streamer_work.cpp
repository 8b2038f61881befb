// A layer's way through the streamer, seen by the threads that compute: granules one by one, waves of them, and the CPU lane.
#include <algorithm>
#include <chrono>
#include <thread>

#include "base/timer.h"
#include "engine/streamer.h"

namespace moepic {
namespace {

constexpr double kRateMemory = 0.9;  // of the CPU lane's measured rate, per run

}  // namespace

// ---- compute threads -------------------------------------------------------------------------------------------------------------------

Fetched Streamer::fetched(const Fetch& fetch) {
    return {fetch.layer, fetch.expert, fetch.run, fetch.pieces};
}

const std::byte* Streamer::land(const Arrival& arrival, const Fetch& fetch, int desk, int thread) {
    Missing& missing = missing_[static_cast<size_t>(arrival.missing)];
    Desk& at = desks_[static_cast<size_t>(desk)];
    std::byte* dst = missing.slot ? missing.slot : at.granule;
    const int64_t start = timeline_ ? now_ns() : 0;
    store_->land(fetched(fetch), missing.granule, at.filler, dst);
    missing.has_landed = true;
    if (timeline_) {
        timeline_->record({.start_ns = start,
                           .end_ns = now_ns(),
                           .bytes = static_cast<uint64_t>(granule_bytes(layer_)),
                           .position = position_,
                           .kind = Span::landing,
                           .lane = thread,
                           .layer = layers_[static_cast<size_t>(layer_)].il,
                           .expert = fetch.expert,
                           .granule = missing.granule});
    }
    return dst;
}

Streamer::Item Streamer::Pass::take(int thread) {
    const auto next = static_cast<size_t>(s_.next_ready_.fetch_add(1, std::memory_order_relaxed));
    if (next < s_.ready_.size()) {
        s_.n_busy_.fetch_add(1, std::memory_order_relaxed);
        return s_.ready_[next];
    }
    return s_.take_missing(thread);
}

Streamer::Item Streamer::take_missing(int thread) {
    std::unique_lock lock(state_);
    int64_t waited_from = 0;
    for (;;) {
        if (error_ || n_unclaimed_ == 0) break;
        if (!arrived_.empty()) {
            const Arrival arrival = arrived_.front();
            const Fetch& fetch = fetches_.at(arrival.ticket);
            const Missing& missing = missing_[static_cast<size_t>(arrival.missing)];
            const std::byte* in_frame = missing.slot ? nullptr : store_->landed(fetched(fetch), missing.granule);
            if (in_frame || !free_desks_.empty()) {
                arrived_.pop_front();
                n_busy_.fetch_add(1, std::memory_order_relaxed);
                end_stall();
                end_wait(waited_from, thread);
                if (--n_unclaimed_ == 0) changed_.notify_all();
                Item item{.want = missing.want, .granule = missing.granule};
                if (in_frame) {
                    item.ticket = arrival.ticket;
                    item.data = in_frame;
                    return item;
                }
                const int desk = free_desks_.back();
                free_desks_.pop_back();
                lock.unlock();
                item.data = land(arrival, fetch, desk, thread);
                lock.lock();
                consume(arrival.ticket);
                if (missing.slot) {
                    free_desks_.push_back(desk);
                    changed_.notify_one();
                } else {
                    item.desk = desk;
                }
                return item;
            }
        }
        if (!waited_from) waited_from = now_ns();
        begin_stall();
        ++n_waiting_;
        changed_.wait(lock);
        --n_waiting_;
    }
    end_wait(waited_from, thread);
    return {};
}

void Streamer::Pass::done(const Item& item) {
    const bool is_last_busy = s_.n_busy_.fetch_sub(1, std::memory_order_acq_rel) == 1;
    if (item.desk < 0 && !item.ticket && !is_last_busy) return;
    const std::lock_guard lock(s_.state_);
    if (item.ticket) s_.consume(item.ticket);
    if (item.desk >= 0) {
        s_.free_desks_.push_back(item.desk);
        s_.changed_.notify_one();
    }
    if (s_.n_waiting_ > 0) s_.begin_stall();
}

// A stall is wall time in which no compute thread has anything to do and some wait. Both hold state_.
void Streamer::begin_stall() {
    if (!stall_from_ns_ && n_busy_.load(std::memory_order_acquire) == 0) stall_from_ns_ = now_ns();
}

void Streamer::end_stall() {
    if (!stall_from_ns_) return;
    tally_.stall_s += 1e-9 * static_cast<double>(now_ns() - stall_from_ns_);
    stall_from_ns_ = 0;
}

void Streamer::end_wait(int64_t from, int thread) {
    if (!timeline_ || !from) return;
    timeline_->record({.start_ns = from,
                       .end_ns = now_ns(),
                       .position = position_,
                       .kind = Span::wait,
                       .lane = thread,
                       .layer = layers_[static_cast<size_t>(layer_)].il});
}

// ---- waves: many tokens ----------------------------------------------------------------------------------------------------------------

bool Streamer::Pass::next_wave(std::vector<WaveRun>& runs, const RunTasks& run_tasks) {
    s_.end_wave();
    runs.clear();
    return s_.first_wave(runs) || s_.gather_wave(runs, run_tasks);
}

bool Streamer::first_wave(std::vector<WaveRun>& runs) {
    if (first_wave_done_) return false;
    first_wave_done_ = true;
    next_granule_ = n_resident_;
    for (size_t w = 0; w < wants_.size(); ++w) {
        if (n_resident_[w] > 0) runs.push_back({static_cast<int32_t>(w), 0, n_resident_[w]});
    }
    return !runs.empty();
}

// Sums over granules run in ascending order inside an expert, so a granule joins a wave only after those before it.
bool Streamer::gather_wave(std::vector<WaveRun>& runs, const RunTasks& run_tasks) {
    {
        std::unique_lock lock(state_);
        int64_t waited_from = 0;
        for (;;) {
            if (error_ || n_unclaimed_ == 0) return false;
            for (bool found = true; found;) {
                found = false;
                for (auto it = arrived_.begin(); it != arrived_.end();) {
                    const Missing& missing = missing_[static_cast<size_t>(it->missing)];
                    int32_t& next = next_granule_[static_cast<size_t>(missing.want)];
                    const std::byte* in_frame = missing.slot ? nullptr : store_->landed(fetched(fetches_.at(it->ticket)), missing.granule);
                    if (missing.granule != next || (!in_frame && free_desks_.empty())) {
                        ++it;
                        continue;
                    }
                    wave_.push_back({*it, -1, in_frame});
                    if (!in_frame) {
                        wave_.back().desk = free_desks_.back();
                        free_desks_.pop_back();
                    }
                    ++next;
                    --n_unclaimed_;
                    it = arrived_.erase(it);
                    found = true;
                }
            }
            if (!wave_.empty()) break;
            if (!waited_from) waited_from = now_ns();
            begin_stall();
            changed_.wait(lock);
        }
        end_stall();
        end_wait(waited_from, 0);
    }
    run_tasks(static_cast<int64_t>(wave_.size()), [this](int64_t i, int thread) {
        WaveItem& item = wave_[static_cast<size_t>(i)];
        if (!item.data) item.data = land(item.arrival, fetch_of(item.arrival.ticket), item.desk, thread);
    });
    for (const WaveItem& item : wave_) {
        const Missing& missing = missing_[static_cast<size_t>(item.arrival.missing)];
        wants_[static_cast<size_t>(missing.want)].data[missing.granule] = item.data;
        const auto run = std::find_if(runs.begin(), runs.end(), [&](const WaveRun& r) { return r.want == missing.want; });
        if (run == runs.end()) {
            runs.push_back({missing.want, missing.granule, 1});
        } else {
            ++run->count;  // granules of a want come in order
        }
    }
    return true;
}

const Streamer::Fetch& Streamer::fetch_of(transfer::Ticket ticket) {
    const std::lock_guard lock(state_);
    return fetches_.at(ticket);
}

void Streamer::end_wave() {
    const std::lock_guard lock(state_);
    for (const WaveItem& item : wave_) {
        consume(item.arrival.ticket);
        if (item.desk >= 0) free_desks_.push_back(item.desk);
    }
    wave_.clear();
}

// ---- the CPU lane ----------------------------------------------------------------------------------------------------------------------

void Streamer::Pass::start_in_place(const Compute& compute, int thread) {
    {
        const std::lock_guard lock(s_.state_);
        s_.compute_ = compute;
        s_.in_place_thread_ = thread;
    }
    s_.in_place_.notify_one();
}

// The CPU takes a run when it would be done with it no later than the link with everything that is left.
bool Streamer::should_compute_in_place(const Queued& run) const {
    return cpu_seconds(run.bytes) <= link_seconds(moving_bytes_ + queued_bytes_);
}

void Streamer::in_place_loop() {
    sleep_precisely();
    std::unique_lock lock(state_);
    for (;;) {
        in_place_.wait(lock, [&] { return is_stopping_ || (compute_ && !queue_.empty() && should_compute_in_place(queue_.back())); });
        if (is_stopping_) return;
        const Queued run = queue_.back();
        queue_.pop_back();
        queued_bytes_ -= run.bytes;
        n_unclaimed_ -= run.count;
        tally_.n_in_place += run.count;
        tally_.demand_bytes -= run.bytes;
        n_in_place_busy_ = run.count;
        lock.unlock();
        const auto start = std::chrono::steady_clock::now();
        for (int j = 0; j < run.count; ++j) {
            const Missing& missing = missing_[static_cast<size_t>(run.first_missing + j)];
            const int32_t expert = wants_[static_cast<size_t>(missing.want)].expert;
            compute_({.want = missing.want, .granule = missing.granule, .data = store_->in_place(layer_, expert, missing.granule)},
                     in_place_thread_);
        }
        // An emulated CPU may be slower than the threads that stand in for the device, never faster.
        std::this_thread::sleep_until(start + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                  std::chrono::duration<double>(static_cast<double>(run.bytes) / options_.cpu_bytes_s)));
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        lock.lock();
        cpu_rate_ = kRateMemory * cpu_rate_ + (1.0 - kRateMemory) * static_cast<double>(run.bytes) / seconds;
        n_in_place_busy_ = 0;
        feed_link();  // what the CPU leaves from here on is the link's
        changed_.notify_all();
    }
}

}  // namespace moepic
