#include "transfer/ledger.h"

#include <algorithm>
#include <cmath>

namespace moepic::transfer {
namespace {

constexpr double kRateHalfLife = 0.25;  // seconds of moving: some tens of granules from a disk, and still "of late" when its speed changes
constexpr uint64_t kMostBytes = uint64_t{1} << 40;  // of all frames: beyond is a caller's slip, and products below stay far from overflow

double seconds(Clock::duration duration) {
    return std::chrono::duration<double>(duration).count();
}

}  // namespace

void check_frames(const char* what, uint64_t frame_bytes, int max_pieces, int n_frames) {
    if (max_pieces < 1 || max_pieces > 65536) fail(Code::argument, what, ": max_pieces is ", max_pieces, ", expected 1 to 65536");
    // One frame is kept for demand, so with a single one no prefetch would ever move.
    if (n_frames < 2 || n_frames > 65536) fail(Code::argument, what, ": n_frames is ", n_frames, ", expected 2 to 65536");
    if (frame_bytes < 1 || frame_bytes > kMostBytes / static_cast<uint64_t>(n_frames)) {
        fail(Code::argument, what, ": frame_bytes is ", frame_bytes, ", expected 1 to ", kMostBytes / static_cast<uint64_t>(n_frames),
             " for ", n_frames, " frames");
    }
}

Ledger::Ledger(const char* what, int n_frames, uint64_t frame_bytes, int depth, Lane::OnReady on_ready)
    : what_(what),
      n_frames_(n_frames),
      n_prefetch_frames_(n_frames - std::max(1, n_frames / 4)),
      n_prefetch_steps_(std::max(1, depth / 2)),
      frame_bytes_(frame_bytes),
      on_ready_(std::move(on_ready)),
      frames_(frame_bytes * static_cast<uint64_t>(n_frames), what),
      freed_(static_cast<size_t>(n_frames)) {
    if (!on_ready_) fail(Code::argument, what_, ": on_ready is empty");
    for (int frame = n_frames - 1; frame >= 0; --frame) free_frames_.push_back(frame);  // the first frames go first: fewer pages touched
}

Ticket Ledger::submit(Cut cut, Urgency urgency) {
    if (cut.frame_bytes > frame_bytes_) {
        fail(Code::argument, what_, ": a transfer takes ", cut.frame_bytes, " bytes with alignment, a frame has ", frame_bytes_);
    }
    Delivery delivery;
    delivery.pieces.reserve(cut.places.size());
    Ticket ticket = 0;
    {
        std::lock_guard lock(mutex_);
        ticket = ++last_ticket_;
        Transfer& transfer = transfers_[ticket];
        transfer.ticket = delivery.ticket = ticket;
        transfer.urgency = urgency;
        transfer.order = ++last_order_;
        transfer.submitted = Clock::now();
        transfer.cut = std::move(cut);
        transfer.delivery = std::move(delivery);
        queued_.insert(&transfer);
    }
    wake();
    return ticket;
}

void Ledger::promote(Ticket ticket) {
    {
        std::lock_guard lock(mutex_);
        const auto found = transfers_.find(ticket);
        if (found == transfers_.end()) return;
        Transfer& transfer = found->second;
        if (transfer.urgency == Urgency::demand || transfer.state == State::ready || transfer.cancelled) return;
        Line& line = transfer.state == State::queued ? queued_ : moving_;
        auto node = line.extract(&transfer);  // empty when all its steps are claimed already
        transfer.urgency = Urgency::demand;
        transfer.order = ++last_order_;
        if (node) line.insert(std::move(node));
        n_prefetch_under_way_ -= transfer.under_way;
        if (transfer.frame >= 0) leave_prefetch_frame();
    }
    wake();
}

bool Ledger::cancel(Ticket ticket) {
    {
        std::lock_guard lock(mutex_);
        const auto found = transfers_.find(ticket);
        if (found == transfers_.end()) return false;
        Transfer& transfer = found->second;
        if (transfer.cancelled || transfer.state == State::ready) return false;
        ++stats_.n_cancelled;
        if (transfer.state == State::queued) {
            queued_.erase(&transfer);
            transfers_.erase(found);
            return true;
        }
        transfer.cancelled = true;
        moving_.erase(&transfer);
        transfer.next_step = transfer.cut.steps.size();
        if (transfer.under_way > 0) return true;  // the mover's buffer until finish()
        end_moving(transfer);
    }
    wake();
    return true;
}

bool Ledger::has_begun(Ticket ticket) const {
    std::lock_guard lock(mutex_);
    const auto found = transfers_.find(ticket);
    return found != transfers_.end() && found->second.state != State::queued;
}

void Ledger::release(Ticket ticket) {
    {
        std::lock_guard lock(mutex_);
        const auto found = transfers_.find(ticket);
        if (found == transfers_.end() || found->second.state != State::ready) return;
        give_frame_back(found->second);
        transfers_.erase(found);
    }
    wake();
}

double Ledger::rate() const {
    std::lock_guard lock(mutex_);
    return late_s_ > 0.0 ? late_bytes_ / late_s_ : 0.0;
}

LaneStats Ledger::stats() const {
    std::lock_guard lock(mutex_);
    LaneStats stats = stats_;
    stats.busy_s = busy_s(Clock::now()) - busy_at_reset_;
    return stats;
}

void Ledger::reset_stats() {
    std::lock_guard lock(mutex_);
    stats_ = {};
    busy_at_reset_ = busy_s(Clock::now());
}

std::optional<Claim> Ledger::try_claim() {
    std::lock_guard lock(mutex_);
    return pick();
}

std::optional<Claim> Ledger::claim() {
    std::unique_lock lock(mutex_);
    std::optional<Claim> picked;
    work_.wait(lock, [&] { return (picked = pick()).has_value() || stopped_; });
    return picked;
}

void Ledger::finish(const Claim& claim, uint64_t moved_bytes, std::shared_ptr<const Error> error) {
    Delivery delivery;
    bool delivers = false, gave_back = false;
    {
        std::lock_guard lock(mutex_);
        Transfer& transfer = transfers_.find(claim.ticket)->second;
        --transfer.under_way;
        if (transfer.urgency == Urgency::prefetch) --n_prefetch_under_way_;
        transfer.moved_bytes += moved_bytes;
        stats_.raw_bytes += moved_bytes;
        const double busy = busy_s(Clock::now());
        const double kept = std::exp2((late_until_ - busy) / kRateHalfLife);
        late_bytes_ = late_bytes_ * kept + (error ? 0.0 : static_cast<double>(claim.step.payload));
        late_s_ = late_s_ * kept + (busy - late_until_);
        late_until_ = busy;
        if (error && !transfer.failed) {
            transfer.failed = true;
            transfer.delivery.error = std::move(error);
            moving_.erase(&transfer);
            transfer.next_step = transfer.cut.steps.size();
        }
        work_.notify_one();  // a step fewer is under way, and on_ready may keep this mover from claiming the next
        if (transfer.under_way > 0 || !transfer.is_all_claimed()) return;
        if (!transfer.cancelled) {
            // From here on cancel() says false. After stop() nobody is told, and the destructor takes the rest.
            delivers = !stopped_;
            if (transfer.failed) {
                ++stats_.n_failed;
            } else {
                ++stats_.n_transfers;
                for (const Step& step : transfer.cut.steps) stats_.bytes += step.payload;
                const std::byte* const frame = frames_.data() + frame_bytes_ * static_cast<uint64_t>(transfer.frame);
                for (const uint64_t place : transfer.cut.places) transfer.delivery.pieces.push_back(frame + place);
            }
            delivery = std::move(transfer.delivery);
        }
        gave_back = transfer.cancelled || transfer.failed;
        end_moving(transfer);
    }
    if (gave_back) wake();  // before on_ready, which may take its time
    if (delivers) on_ready_(delivery);
}

void Ledger::stop() {
    {
        std::lock_guard lock(mutex_);
        stopped_ = true;
    }
    wake();
}

bool Ledger::is_stopped() const {
    std::lock_guard lock(mutex_);
    return stopped_;
}

std::optional<Claim> Ledger::pick() {
    if (stopped_) return {};
    // Demand sorts first, so when the first of a line may not go, nobody behind it may.
    const auto may_go = [&](const Transfer& transfer) {
        return transfer.urgency == Urgency::demand || n_prefetch_under_way_ < n_prefetch_steps_;
    };
    const auto queued = queued_.begin();
    if (queued != queued_.end() && may_go(**queued) && has_frame_for((*queued)->urgency) &&
        (moving_.empty() || GoesBefore{}(*queued, *moving_.begin()))) {
        start(queued);
    }
    if (moving_.empty() || !may_go(**moving_.begin())) return {};
    Transfer& transfer = **moving_.begin();
    if (transfer.urgency == Urgency::prefetch) ++n_prefetch_under_way_;
    Claim claim;
    claim.ticket = transfer.ticket;
    claim.step = transfer.cut.steps[transfer.next_step];
    claim.to = frames_.data() + frame_bytes_ * static_cast<uint64_t>(transfer.frame) + claim.step.at;
    claim.first = transfer.next_step == 0;
    claim.since = transfer.since;
    ++transfer.under_way;
    ++transfer.next_step;
    if (transfer.is_all_claimed()) moving_.erase(moving_.begin());
    return claim;
}

bool Ledger::has_frame_for(Urgency urgency) const {
    return !free_frames_.empty() && (urgency == Urgency::demand || n_prefetch_held_ < n_prefetch_frames_);
}

void Ledger::start(Line::iterator queued) {
    auto node = queued_.extract(queued);
    Transfer& transfer = *node.value();
    transfer.state = State::moving;
    transfer.frame = free_frames_.back();
    free_frames_.pop_back();
    if (transfer.urgency == Urgency::prefetch) ++n_prefetch_held_;
    transfer.since = std::max(transfer.submitted, freed_[static_cast<size_t>(transfer.frame)]);
    if (transfer.urgency == Urgency::prefetch) transfer.since = std::max(transfer.since, prefetch_freed_);
    moving_.insert(std::move(node));
    // Not from now on: how long a mover took to wake up is part of what the lane costs.
    if (n_moving_++ == 0) busy_since_ = std::max(transfer.since, busy_until_);
}

void Ledger::give_frame_back(Transfer& transfer) {
    if (transfer.frame < 0) return;
    freed_[static_cast<size_t>(transfer.frame)] = Clock::now();
    free_frames_.push_back(transfer.frame);  // the frame used last goes first: its pages are there
    if (transfer.urgency == Urgency::prefetch) leave_prefetch_frame();
    transfer.frame = -1;
}

void Ledger::leave_prefetch_frame() {
    --n_prefetch_held_;
    prefetch_freed_ = Clock::now();
}

void Ledger::end_moving(Transfer& transfer) {
    if (--n_moving_ == 0) {
        busy_until_ = Clock::now();
        busy_before_ += seconds(busy_until_ - busy_since_);
    }
    transfer.state = State::ready;
    if (transfer.cancelled || transfer.failed) give_frame_back(transfer);
    if (transfer.cancelled) {
        stats_.dropped_bytes += transfer.moved_bytes;
        transfers_.erase(transfer.ticket);
    }
}

double Ledger::busy_s(Clock::time_point now) const {
    return busy_before_ + (n_moving_ > 0 ? seconds(now - busy_since_) : 0.0);
}

void Ledger::wake() {
    work_.notify_all();
    if (wake_) wake_();
}

Ticket LedgerLane::submit(std::span<const Piece> pieces, Urgency urgency) {
    if (pieces.empty() || pieces.size() > static_cast<size_t>(max_pieces_)) {
        fail(Code::argument, what_, ": a transfer of ", pieces.size(), " pieces, expected 1 to ", max_pieces_);
    }
    for (const Piece& piece : pieces) {
        if (piece.source < 0 || static_cast<size_t>(piece.source) >= n_sources_) {
            fail(Code::argument, what_, ": a piece of source ", piece.source, ", there are ", n_sources_);
        }
        constexpr uint64_t kEnd = INT64_MAX;  // offsets of the operating system are signed
        if (piece.bytes == 0 || piece.bytes > kEnd || piece.offset > kEnd - piece.bytes) {
            fail(Code::argument, what_, ": a piece of ", piece.bytes, " bytes at ", piece.offset, ", expected 1 byte or more below 2^63");
        }
    }
    return ledger_.submit(cut(pieces), urgency);
}

}  // namespace moepic::transfer
