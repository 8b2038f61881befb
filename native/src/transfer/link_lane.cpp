// The emulated link: a thread that copies, and a clock that says when each copy would have ended on a link of the stated speed.
//
// A copy starts when the link is free and the transfer could start, whichever is later, by the clock of the emulation and not by when this
// thread woke up; so neither late wake-ups nor a slow on_ready add up over many small copies. It ends latency (first copy of a transfer)
// and bytes / bandwidth later, and is never handed out sooner. Where memory is slower than the stated link, the copy's real end is the
// truth.
#include "transfer/link_lane.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>

#include "base/timer.h"
#include "transfer/ledger.h"

namespace moepic::transfer {
namespace {

constexpr uint64_t kLine = 64;  // pieces start at cache lines, as an allocator of a device would place them
// Sleep until this long before the end, then spin: a wake-up from a precise sleep is late by some 20 us, and a granule takes some 40 us of
// a fast link. No longer, because whoever spins here holds a core that stands in for the device, which would not wait for its link.
constexpr auto kSpin = std::chrono::microseconds(40);

void check(const LinkLaneOptions& options) {
    check_frames("link lane", options.frame_bytes, options.max_pieces, options.n_frames);
    if (options.sources.empty()) fail(Code::argument, "link lane: no sources");
    if (!(options.bytes_s >= 1.0 && std::isfinite(options.bytes_s))) {
        fail(Code::argument, "link lane: bytes_s is ", options.bytes_s, ", expected 1 or more");
    }
    if (!(options.latency_s >= 0.0 && options.latency_s <= 60.0)) {
        fail(Code::argument, "link lane: latency_s is ", options.latency_s, ", expected 0 to 60");
    }
}

uint64_t round_up_to_line(uint64_t bytes) {
    return (bytes + kLine - 1) / kLine * kLine;
}

uint64_t frame_bytes_of(const LinkLaneOptions& options) {
    return round_up_to_line(options.frame_bytes + static_cast<uint64_t>(options.max_pieces) * (kLine - 1));
}

class LinkLane final : public LedgerLane {
public:
    LinkLane(const LinkLaneOptions& options, OnReady on_ready)
        : LedgerLane("link lane", options.sources.size(), options.max_pieces, options.n_frames, frame_bytes_of(options), 1,
                     std::move(on_ready)),
          options_(options),
          thread_([this] { move_steps(); }) {}
    ~LinkLane() override {
        ledger_.stop();
        thread_.join();
    }

    std::string describe() const override {
        char text[96];
        std::snprintf(text, sizeof text, "link: emulated %.1f GB/s + %.0f us", options_.bytes_s / 1e9, options_.latency_s * 1e6);
        return text;
    }

protected:
    Cut cut(std::span<const Piece> pieces) const override {
        Cut cut;
        for (const Piece& piece : pieces) {
            const size_t source_bytes = options_.sources[static_cast<size_t>(piece.source)].size();
            if (piece.offset + piece.bytes > source_bytes) {
                fail(Code::argument, "link lane: a piece of ", piece.bytes, " bytes at ", piece.offset, ", source ", piece.source, " has ",
                     source_bytes);
            }
            cut.places.push_back(cut.frame_bytes);
            cut.steps.push_back({piece.source, piece.offset, piece.bytes, 0, piece.bytes, cut.frame_bytes});
            cut.frame_bytes += round_up_to_line(piece.bytes);
        }
        return cut;
    }

private:
    void move_steps() {
        sleep_precisely();
        Clock::time_point free_at{};  // when the emulated link has ended its last copy
        while (const auto claim = ledger_.claim()) {
            const Step& step = claim->step;
            const double takes_s = (claim->first ? options_.latency_s : 0.0) + static_cast<double>(step.payload) / options_.bytes_s;
            const auto ends = std::max(free_at, claim->since) +
                              std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(std::min(takes_s, 1e6)));
            std::memcpy(claim->to, options_.sources[static_cast<size_t>(step.source)].data() + step.offset, step.bytes);
            free_at = std::max(ends, Clock::now());
            wait_until(ends);
            ledger_.finish(*claim, step.bytes, nullptr);
        }
    }

    // Stops waiting when the lane stops: nothing is delivered then.
    void wait_until(Clock::time_point end) const {
        constexpr auto kNap = std::chrono::milliseconds(20);
        for (auto now = Clock::now(); now < end; now = Clock::now()) {
            if (end - now <= kSpin) continue;
            if (ledger_.is_stopped()) return;
            std::this_thread::sleep_for(std::min<Clock::duration>(kNap, end - now - kSpin));
        }
    }

    const LinkLaneOptions options_;
    std::thread thread_;
};

}  // namespace

std::unique_ptr<Lane> open_link_lane(const LinkLaneOptions& options, Lane::OnReady on_ready) {
    check(options);
    return std::make_unique<LinkLane>(options, std::move(on_ready));
}

}  // namespace moepic::transfer
