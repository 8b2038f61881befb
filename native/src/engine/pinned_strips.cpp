#include "engine/pinned_strips.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"

namespace moepic {
namespace {

// Pieces that a limit of the system cuts off whole, and that a reader waits for: a sixteenth of the strips, or a little of a large model's.
// Whole pages, since none is pinned twice.
constexpr uint64_t kLeastPiece = uint64_t{64} << 10, kMostPiece = uint64_t{256} << 20;

size_t piece_of(uint64_t bytes) {
    return std::clamp((bytes / 16 + kLeastPiece - 1) / kLeastPiece * kLeastPiece, kLeastPiece, kMostPiece);
}

}  // namespace

PinnedStrips::PinnedStrips(const device::Library& library, int32_t device, std::span<std::byte> strips, uint64_t limit)
    : library_(library),
      device_(device),
      strips_(strips),
      most_(limit ? std::min<uint64_t>(limit, strips.size()) : strips.size()),
      piece_bytes_(piece_of(most_)) {}

PinnedStrips::~PinnedStrips() {
    is_stopping_.store(true, std::memory_order_relaxed);
    if (worker_.joinable()) worker_.join();
}

void PinnedStrips::pin(const std::function<bool(uint64_t, uint64_t)>& progress) {
    pin_pieces([&](uint64_t done) {
        if (progress && !progress(done, most_)) fail(Code::cancelled, "load: cancelled while experts were pinned");
        return true;
    });
    is_over_.store(true, std::memory_order_release);
}

void PinnedStrips::pin_beside() {
    worker_ = std::thread([this] {
        try {
            library_.use(device_);
            pin_pieces([this](uint64_t) { return !is_stopping_.load(std::memory_order_relaxed); });
            if (pinned_bytes() == most_)
                log_message(LogLevel::info,
                            cat("device: ", human_bytes(most_), " of ", human_bytes(strips_.size()), " of experts are pinned"));
        } catch (const std::exception& error) {
            log_message(LogLevel::warning, cat("device: ", human_bytes(pinned_bytes()), " of ", human_bytes(strips_.size()),
                                               " of experts are pinned, the rest takes one more copy: ", error.what()));
        }
        is_over_.store(true, std::memory_order_release);
    });
}

void PinnedStrips::pin_pieces(const std::function<bool(uint64_t)>& goes_on) {
    for (uint64_t at = 0; at < most_ && goes_on(at); at += piece_bytes_) {
        const size_t bytes = std::min<uint64_t>(piece_bytes_, most_ - at);
        pieces_.push_back(device::pin(library_, strips_.subspan(at, bytes), "experts"));
        pinned_bytes_.store(at + bytes, std::memory_order_release);
    }
}

bool PinnedStrips::holds(const std::byte* from, size_t bytes) const noexcept {
    const auto at = static_cast<size_t>(from - strips_.data());
    return at + bytes <= pinned_bytes() && at / piece_bytes_ == (at + bytes - 1) / piece_bytes_;
}

}  // namespace moepic
