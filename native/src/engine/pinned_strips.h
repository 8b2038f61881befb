// Pins the experts' strips for the link, piece by piece, on the caller's thread or on one of its own: pinning writes to every page's entry,
// which may take tens of seconds for tens of gigabytes, and what is not pinned yet can be served all the same, by one more copy of the CPU's.
//
// Threads: pinned_bytes_ is written by whoever pins, and released when a piece is pinned; who acquires it may give copies from below it to
// a stream. pieces_ belongs to whoever pins, and after the thread has ended to the destructor.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <thread>
#include <vector>

#include "device/buffer.h"
#include "device/library.h"

namespace moepic {

class PinnedStrips {
public:
    // Of `strips`, at most `limit` bytes from the beginning; 0: no limit. Pins nothing yet.
    PinnedStrips(const device::Library& library, int32_t device, std::span<std::byte> strips, uint64_t limit);
    // Stops between two pieces, and unpins. Not before the last copy from here has ended.
    ~PinnedStrips();
    PinnedStrips(const PinnedStrips&) = delete;
    PinnedStrips& operator=(const PinnedStrips&) = delete;

    // One of the two, once. Here: throws what stops it; false from progress cancels. Beside: from a thread of its own; what stops it, and
    // that it ended well, is logged.
    void pin(const std::function<bool(uint64_t done, uint64_t total)>& progress);
    void pin_beside();

    // Whether the link can read these bytes of the strips as they lie: no copy spans two pieces. Once true it stays so.
    bool holds(const std::byte* from, size_t bytes) const noexcept;
    uint64_t pinned_bytes() const noexcept { return pinned_bytes_.load(std::memory_order_acquire); }
    // Still to come: 0 when pinning has ended, for whatever reason.
    uint64_t left_bytes() const noexcept { return is_over_.load(std::memory_order_acquire) ? 0 : most_ - pinned_bytes(); }

private:
    void pin_pieces(const std::function<bool(uint64_t done)>& goes_on);

    const device::Library& library_;
    const int32_t device_;
    const std::span<std::byte> strips_;
    const uint64_t most_;
    const size_t piece_bytes_;
    std::atomic<uint64_t> pinned_bytes_{0};  // from the beginning of the strips
    std::atomic<bool> is_over_{false}, is_stopping_{false};
    std::vector<device::PinnedRange> pieces_;
    std::thread worker_;
};

}  // namespace moepic
