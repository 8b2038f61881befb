// The queue of a pass: what is missing, given from its head to the link and from its tail to the CPU, by rates measured while both work.
#include <algorithm>

#include "engine/device_experts.h"
#include "engine/timeline.h"

namespace moepic {
namespace {

// Of a prompt, whose kernels want many granules at once to fill the device.
constexpr int64_t kManyChunkBytes = int64_t{16} << 20;
// Chunks given to the link while the CPU may still take the rest: enough that the link never idles.
constexpr size_t kLinkAhead = 3;
constexpr double kRateMemory = 0.9;  // of the link's measured rate, per chunk

}  // namespace

DeviceExperts::Range DeviceExperts::Pass::next() {
    return e_.next();
}

// Whether the link should take the head now: when it would have it there before the CPU could have computed all the rest; is_cpu_wanted()
// is the same question asked from the other end. Whoever is wrong about its rate is corrected by what is left in the queue. What the CPU
// cannot take is not asked about: the rest of an expert that the link has begun, and what is before first_in_place_. Holds state_.
bool DeviceExperts::is_link_wanted() const {
    if (moving_.size() >= kLinkAhead) return false;
    if (head_ < first_in_place_ || begun() > 0) return true;
    const double cpu_s = std::max(queued_cpu_s_ / cpu_threads_, cpu_seconds(head_));
    return link_seconds(moving_bytes_ + unit() * granule_bytes(layer_)) <= cpu_s || (moving_.empty() && !is_cpu_wanted());
}

bool DeviceExperts::is_cpu_wanted() const {
    if (tail_ - unit() < std::max(head_, first_in_place_)) return false;
    return cpu_seconds(tail_ - 1) <= link_seconds(moving_bytes_ + queued_bytes_);
}

// Until the CPU would have done what it takes as one, a granule of which is `missing`. Threads share an expert.
double DeviceExperts::cpu_seconds(int missing) const {
    return unit() * missing_[static_cast<size_t>(missing)].cpu_s / std::min(cpu_threads_, unit());
}

DeviceExperts::Range DeviceExperts::next() {
    Range range;
    int64_t bytes = 0;
    const int64_t chunk_bytes = is_many_ ? kManyChunkBytes : kChunkBytes;
    {
        const std::lock_guard lock(state_);
        poll_link();
        if (head_ == tail_) return {};
        if (uses_cpu_lane_ && !is_link_wanted()) return {};
        const int64_t one = granule_bytes(layer_);
        range.first = first_missing_ + head_;
        // Of what both may take, something is left to divide.
        const int most = !uses_cpu_lane_           ? tail_ - head_
                         : head_ < first_in_place_ ? first_in_place_ - head_
                                                   : std::max(unit() - begun(), (tail_ - head_) / 2);
        int half = -1;  // a chunk stays inside one half of the frames
        while (range.count < most && (range.count == 0 || bytes + one <= chunk_bytes)) {
            const int number = missing_[static_cast<size_t>(head_)].frame;
            if (number >= 0 && half >= 0 && half_of(number) != half) break;
            if (number >= 0) half = half_of(number);
            queued_cpu_s_ -= missing_[static_cast<size_t>(head_)].cpu_s;
            ++head_;
            ++range.count;
            bytes += one;
        }
        queued_bytes_ -= bytes;
    }
    const int first = range.first - first_missing_;
    const size_t one = store_->layout(layer_).granule_bytes;
    for (int i = first; i < first + range.count;) {
        const Missing& missing = missing_[static_cast<size_t>(i)];
        // The second time round, kernels have read the half.
        if (missing.frame >= needs_.n_queue && missing.frame % (needs_.n_queue / 2) == 0)
            demand_.wait(half_done_[static_cast<size_t>(half_of(missing.frame))]);
        // Granules that lie side by side on both ends are one copy.
        const std::byte* from = host_data(i);
        int count = 1;
        for (int next = i + 1; next < first + range.count; ++next, ++count) {
            const auto held = one * static_cast<size_t>(count);
            const Missing& other = missing_[static_cast<size_t>(next)];
            if (other.to != missing.to + held || (other.frame < 0) != (missing.frame < 0)) break;
            if (host_data(next) != from + held || !pinned_.holds(from, held + one)) break;
        }
        copy(missing.to, from, one * static_cast<size_t>(count), demand_);
        for (int j = i; j < i + count; ++j) missing_[static_cast<size_t>(j)].is_loaded = true;
        i += count;
    }
    const int event = n_chunks_++ % static_cast<int>(chunk_.size());
    demand_.record(chunk_[static_cast<size_t>(event)]);
    compute_->wait(chunk_[static_cast<size_t>(event)]);
    tally_.demand_bytes += bytes;
    tally_.n_link += range.count;
    const std::lock_guard lock(state_);
    if (moving_.size() == chunk_.size()) {  // its event is taken by this chunk; only a queue without a CPU gets this far
        moving_bytes_ -= moving_.front().bytes;
        moving_.pop_front();
    }
    moving_.push_back({event, bytes, now_ns()});
    moving_bytes_ += bytes;
    return range;
}

// Holds state_. A chunk took the time since it was submitted, or since the one before it arrived; chunks found at once count as one.
void DeviceExperts::poll_link() {
    int64_t bytes = 0, from_ns = 0;
    for (; !moving_.empty() && chunk_[static_cast<size_t>(moving_.front().event)].is_done(); moving_.pop_front()) {
        if (bytes == 0) from_ns = std::max(last_arrival_ns_, moving_.front().submitted_ns);
        bytes += moving_.front().bytes;
    }
    if (bytes == 0) return;
    last_arrival_ns_ = now_ns();
    const double seconds = 1e-9 * static_cast<double>(std::max<int64_t>(1, last_arrival_ns_ - from_ns));
    link_rate_ = kRateMemory * link_rate_ + (1.0 - kRateMemory) * static_cast<double>(bytes) / seconds;
    moving_bytes_ -= bytes;
}

void DeviceExperts::Pass::launched(Range range) {
    for (int i = range.first; i < range.first + range.count; ++i) {
        const int number = e_.missing_[static_cast<size_t>(i - e_.first_missing_)].frame;
        if (number < 0) continue;
        return e_.compute_->record(e_.half_done_[static_cast<size_t>(e_.half_of(number))]);
    }
}

bool DeviceExperts::Pass::is_queue_empty() const {
    const std::lock_guard lock(e_.state_);
    return e_.head_ == e_.tail_ && e_.in_place_ == e_.in_place_end_;
}

int DeviceExperts::Pass::take_in_place() {
    return e_.take_in_place();
}

int DeviceExperts::take_in_place() {
    const std::lock_guard lock(state_);
    if (in_place_ == in_place_end_) {
        if (!is_cpu_wanted()) return -1;
        in_place_end_ = tail_;
        tail_ -= unit();
        in_place_ = tail_;
        queued_bytes_ -= unit() * granule_bytes(layer_);
        queued_cpu_s_ -= unit() * missing_[static_cast<size_t>(tail_)].cpu_s;
    }
    ++tally_.n_in_place;
    return first_missing_ + in_place_++;
}

void DeviceExperts::Pass::done_in_place(int placed, double seconds) {
    const int n_entries = e_.entries_[static_cast<size_t>(e_.placed_[static_cast<size_t>(placed)].want)];
    const std::lock_guard lock(e_.state_);
    e_.cpu_cost_.observe(e_.granule_bytes(e_.layer_), n_entries, seconds);
}

const std::byte* DeviceExperts::host_data(int missing) const {
    const Placed& at = placed_[static_cast<size_t>(first_missing_ + missing)];
    return store_->in_place(layer_, experts_[static_cast<size_t>(at.want)], at.granule);
}

void DeviceExperts::Pass::returned() {
    e_.compute_->record(e_.last_arrival_);
    e_.stall_ = Stall{e_.layer_, e_.is_decode_};
}

}  // namespace moepic
