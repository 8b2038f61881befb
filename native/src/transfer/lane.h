// A lane: one ordered path along which bytes come to where they are computed. A transfer is a few pieces of one source that belong together
// (a granule's gate, up and down bytes); they land in a frame, a staging buffer the lane owns, and stay there until the caller gives the
// frame back. What the bytes mean, and which of them to bring, is not known here.
//
//   submit -> queued -> moving -> ready -> released            cancel(): queued goes at once, moving is dropped when it lands, and a
//                          \---> failed                        cancelled transfer is never delivered
//
// Order: demand before prefetch, and within a class as submitted; pieces of two transfers may move at the same time, so they may become
// ready out of order. Frames bound what is under way: a queued transfer waits for a frame, which prefetches may not all take (one in four,
// at least one, is kept for demand).
//
// Prefetches move at most half of what a lane moves at once, so a demand never waits behind a lane full of them.
//
// Threads: every function may be called from any thread. `on_ready`, given when the lane is opened, is called on a thread of the lane,
// without its locks, once for every transfer that was not cancelled before; with several threads, by several at once. It may call the lane,
// but not its destructor; it must not throw; and while it runs that thread moves nothing.
// End: the destructor cancels what is left and waits for what the kernel still writes and for a running on_ready; after it nothing is
// called. From when it begins nobody may call the lane, on_ready included: an owner whose on_ready does makes it stop first (a flag under a
// mutex).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace moepic::transfer {

// Consecutive bytes of one source: a file of a file lane, a block of memory of a link lane.
struct Piece {
    int source = 0;
    uint64_t offset = 0;
    uint64_t bytes = 0;
};

enum class Urgency : int { demand = 0, prefetch = 1 };

// Names a transfer from submit() to release(); never 0, never used twice.
using Ticket = uint64_t;

struct Delivery {
    Ticket ticket = 0;
    // Where each piece lies, in the order of submit(); valid until release(). Empty when it failed.
    std::vector<const std::byte*> pieces;
    // Set when it failed: Code::io with what, where, expected and found. The frame of a failed transfer is already given back, release() is
    // still due and harmless.
    std::shared_ptr<const Error> error;
};

// Counted since the start, or since reset. busy_s: wall time during which at least one transfer was moving, the lane's time to wake up for
// it included; bytes / busy_s is the lane's rate while it ran.
struct LaneStats {
    uint64_t bytes = 0;          // asked for and delivered, without what alignment added
    uint64_t raw_bytes = 0;      // moved, with it, cancelled transfers included
    uint64_t dropped_bytes = 0;  // moved for transfers that were cancelled under way
    int64_t n_transfers = 0, n_cancelled = 0, n_failed = 0;
    double busy_s = 0.0;
};

class Lane {
public:
    using OnReady = std::function<void(const Delivery&)>;

    virtual ~Lane() = default;
    Lane() = default;
    Lane(const Lane&) = delete;
    Lane& operator=(const Lane&) = delete;

    // Queues a transfer. Its pieces must fit one frame (frame_bytes()); Error(argument) otherwise.
    virtual Ticket submit(std::span<const Piece> pieces, Urgency urgency) = 0;
    // A prefetch that turned out to be wanted: it goes before other prefetches, behind demand submitted earlier. Anything else: no effect.
    virtual void promote(Ticket ticket) = 0;
    // True: this call dropped the transfer; it will not be delivered (on_ready is not called after cancel() returned true) and needs no
    // release(). False: it was delivered, or is being delivered, and is the caller's to release; or it was cancelled before.
    virtual bool cancel(Ticket ticket) = 0;
    // Whether bytes of the transfer have begun to move. False for one that waits, and for what is over.
    virtual bool has_begun(Ticket ticket) const = 0;
    // Gives the frame of a delivered transfer back.
    virtual void release(Ticket ticket) = 0;

    // Memory of one frame: the longest transfer, all pieces with their alignment together.
    virtual uint64_t frame_bytes() const = 0;
    virtual int n_frames() const = 0;
    // Bytes asked for per second of late, over the time in which transfers were moving; 0 before the first.
    virtual double rate() const = 0;
    virtual LaneStats stats() const = 0;
    virtual void reset_stats() = 0;
    // How it works here, for people: "file: io_uring, direct", "link: emulated 25.0 GB/s + 10 us".
    virtual std::string describe() const = 0;
};

}  // namespace moepic::transfer
