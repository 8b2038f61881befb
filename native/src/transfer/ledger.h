// What every lane keeps: which transfers are queued, moving or ready, which frames are free, and what was moved while. Movers (the thread
// of a link, the threads or the ring of a file lane) claim steps here and hand their results back. Knows neither files nor links.
//
// A transfer is cut into steps, each one read or copy, before it is queued. It takes a frame with its first step and is moving until its
// last step has landed; it lands as ready, as failed, or, when cancelled meanwhile, as nothing.
//
// Threads: one mutex guards everything below it in the class; it is never held during I/O, copies or on_ready. What a frame holds is not
// guarded: the steps of one transfer write disjoint parts of it, landing under the mutex orders them before on_ready, and a frame given
// back under the mutex is ordered before the steps that fill it again.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <set>
#include <unordered_map>

#include "base/region.h"
#include "transfer/lane.h"

namespace moepic::transfer {

using Clock = std::chrono::steady_clock;

// One read or copy: `bytes` from `offset` of a source to `at` in the frame. The payload, what was asked for, starts `skip` bytes in; bytes
// around it are alignment and may be missing at the end of a source.
struct Step {
    int source = 0;
    uint64_t offset = 0;
    uint64_t bytes = 0;
    uint64_t skip = 0;
    uint64_t payload = 0;
    uint64_t at = 0;
};

// A transfer as a lane means to move it.
struct Cut {
    std::vector<Step> steps;
    std::vector<uint64_t> places;  // of each piece's first byte in the frame
    uint64_t frame_bytes = 0;      // of the frame taken
};

// A step to move now.
struct Claim {
    Ticket ticket = 0;
    Step step;
    std::byte* to = nullptr;
    bool first = false;         // of its transfer
    Clock::time_point since{};  // since when the transfer was queued and had a free frame: when an idle lane would have started it
};

class Ledger {
public:
    // `what` names the lane in errors. depth: steps that are under way at once, at most; prefetches may have half of them, so that a demand
    // finds room at once and little in front of it. on_ready must not throw.
    Ledger(const char* what, int n_frames, uint64_t frame_bytes, int depth, Lane::OnReady on_ready);

    // For movers that sleep elsewhere than in claim(): called without the mutex when there may be a step to claim, and by stop(). Set
    // before the first submit().
    void set_wake(std::function<void()> wake) { wake_ = std::move(wake); }

    // The face of a lane (lane.h).
    Ticket submit(Cut cut, Urgency urgency);
    void promote(Ticket ticket);
    bool cancel(Ticket ticket);
    bool has_begun(Ticket ticket) const;
    void release(Ticket ticket);
    uint64_t frame_bytes() const { return frame_bytes_; }
    int n_frames() const { return n_frames_; }
    double rate() const;
    LaneStats stats() const;
    void reset_stats();

    // The face of a mover. The step that goes first, if one may go now; claim() waits for one and gives nothing only after stop().
    std::optional<Claim> try_claim();
    std::optional<Claim> claim();
    // Takes a step's result back: bytes moved, and why no more. Calls on_ready when the transfer has landed.
    void finish(const Claim& claim, uint64_t moved_bytes, std::shared_ptr<const Error> error);
    // From here on nothing is claimed or delivered. Steps under way still come back through finish().
    void stop();
    bool is_stopped() const;

private:
    enum class State { queued, moving, ready };
    struct Transfer {
        Ticket ticket = 0;
        Urgency urgency = Urgency::demand;
        uint64_t order = 0;  // within its class
        State state = State::queued;
        bool cancelled = false, failed = false;
        int frame = -1;
        size_t next_step = 0;
        int under_way = 0;  // steps claimed and not finished
        uint64_t moved_bytes = 0;
        Clock::time_point submitted{}, since{};
        Cut cut;
        Delivery delivery;  // with room for its pieces, so that landing allocates nothing

        bool is_all_claimed() const { return next_step == cut.steps.size(); }
    };
    struct GoesBefore {
        bool operator()(const Transfer* a, const Transfer* b) const {
            return a->urgency != b->urgency ? a->urgency < b->urgency : a->order < b->order;
        }
    };
    using Line = std::set<Transfer*, GoesBefore>;

    // All of these want the mutex held.
    std::optional<Claim> pick();
    bool has_frame_for(Urgency urgency) const;
    void start(Line::iterator queued);
    void give_frame_back(Transfer& transfer);
    void leave_prefetch_frame();
    void end_moving(Transfer& transfer);  // its last step has landed, or it had none under way and was cancelled
    double busy_s(Clock::time_point now) const;
    // Wants it not held.
    void wake();

    const char* const what_;
    const int n_frames_;
    const int n_prefetch_frames_;  // which prefetches may hold; the rest is kept for demand
    const int n_prefetch_steps_;   // of theirs, under way at once
    const uint64_t frame_bytes_;
    const Lane::OnReady on_ready_;
    std::function<void()> wake_;  // written before the first submit(), read by any thread
    Region frames_;

    mutable std::mutex mutex_;
    std::condition_variable work_;  // something may have become claimable, or stop
    bool stopped_ = false;
    Ticket last_ticket_ = 0;
    uint64_t last_order_ = 0;
    std::unordered_map<Ticket, Transfer> transfers_;  // until released or landed as nothing; addresses are stable
    Line queued_;                                     // without a frame
    Line moving_;                                     // with a frame and steps to claim
    std::vector<int> free_frames_;
    std::vector<Clock::time_point> freed_;  // of each frame: when it was given back last
    int n_prefetch_held_ = 0;
    Clock::time_point prefetch_freed_{};             // when that went down last
    int n_prefetch_under_way_ = 0;                   // steps
    int n_moving_ = 0;                               // transfers in State::moving
    LaneStats stats_;                                // busy_s of it unused: busy_s() - busy_at_reset_ is
    double busy_before_ = 0.0;                       // of ended busy spells
    Clock::time_point busy_since_{}, busy_until_{};  // of the present one, if n_moving_ > 0; end of the last one
    double busy_at_reset_ = 0.0;
    // Payload bytes and busy seconds of late: both halve with every kRateHalfLife of busy time, so their quotient has no start-up bias.
    double late_bytes_ = 0.0, late_s_ = 0.0, late_until_ = 0.0;
};

// A lane over a ledger; what is left to the lane is how pieces are cut, and moving the steps. A derived destructor stops the ledger and
// joins its movers.
class LedgerLane : public Lane {
public:
    Ticket submit(std::span<const Piece> pieces, Urgency urgency) final;
    void promote(Ticket ticket) final { ledger_.promote(ticket); }
    bool cancel(Ticket ticket) final { return ledger_.cancel(ticket); }
    bool has_begun(Ticket ticket) const final { return ledger_.has_begun(ticket); }
    void release(Ticket ticket) final { ledger_.release(ticket); }
    uint64_t frame_bytes() const final { return ledger_.frame_bytes(); }
    int n_frames() const final { return ledger_.n_frames(); }
    double rate() const final { return ledger_.rate(); }
    LaneStats stats() const final { return ledger_.stats(); }
    void reset_stats() final { ledger_.reset_stats(); }

protected:
    LedgerLane(const char* what, size_t n_sources, int max_pieces, int n_frames, uint64_t frame_bytes, int depth, OnReady on_ready)
        : what_(what), n_sources_(n_sources), max_pieces_(max_pieces), ledger_(what, n_frames, frame_bytes, depth, std::move(on_ready)) {}

    // Steps in the order to move them. Pieces are known to be 1 .. max_pieces, not empty, of known sources and below 2^63.
    virtual Cut cut(std::span<const Piece> pieces) const = 0;

    const char* const what_;
    const size_t n_sources_;
    const int max_pieces_;
    Ledger ledger_;
};

// The options both lanes share; Error(argument) names the one that makes no sense.
void check_frames(const char* what, uint64_t frame_bytes, int max_pieces, int n_frames);

}  // namespace moepic::transfer
