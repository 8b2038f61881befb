#include "engine/device_arena.h"

#include <algorithm>
#include <iterator>

namespace moepic {
namespace {

// Enough that a piece is little of the cache (3 %), few enough that what a driver rounds each up by (to 2 MiB) is little of a piece.
constexpr int64_t kMostPieces = 32;
constexpr size_t kGapBytes = 64;  // behind the last slot of a piece

}  // namespace

DeviceArena::DeviceArena(const device::Library& library, std::vector<ArenaPool> pools) : pools_(std::move(pools)) {
    int64_t longest = 0, n_slot = 0;
    for (const ArenaPool& pool : pools_) {
        longest = std::max(longest, pool.n_slot);
        n_slot += pool.n_slot;
    }
    if (n_slot == 0) return;
    n_pieces_ = std::min(longest, kMostPieces);  // so that none is empty
    slots_.resize(static_cast<size_t>(n_slot));
    for (size_t piece = 0; piece < static_cast<size_t>(n_pieces_); ++piece) {
        size_t bytes = kGapBytes;
        for (const ArenaPool& pool : pools_)
            bytes += static_cast<size_t>(slots_in_first(pool, piece + 1) - slots_in_first(pool, piece)) * pool.slot_bytes;
        pieces_.push_back(device::allocate(library, bytes, "a piece of the expert arena"));
        std::byte* at = pieces_.back().data();
        int64_t first = 0;  // slot of the pool
        for (const ArenaPool& pool : pools_) {
            for (int64_t slot = slots_in_first(pool, piece); slot < slots_in_first(pool, piece + 1); ++slot, at += pool.slot_bytes)
                slots_[static_cast<size_t>(first + slot)] = at;
            first += pool.n_slot;
        }
    }
}

uint64_t DeviceArena::bytes() const noexcept {
    uint64_t bytes = 0;
    for (const device::DeviceMemory& piece : pieces_) bytes += piece.size();
    return bytes;
}

size_t DeviceArena::pieces_with(uint64_t bytes) const noexcept {
    uint64_t found = 0;
    size_t n = 0;
    while (found < bytes && n < pieces_.size()) found += pieces_[pieces_.size() - ++n].size();
    return n;
}

std::vector<int> DeviceArena::slots_without(size_t n_pieces) const {
    std::vector<int> n_slot;
    for (const ArenaPool& pool : pools_) n_slot.push_back(static_cast<int>(slots_in_first(pool, pieces_.size() - n_pieces)));
    return n_slot;
}

std::vector<device::DeviceMemory> DeviceArena::take_last(size_t n_pieces) {
    const auto first = pieces_.end() - static_cast<std::ptrdiff_t>(n_pieces);
    std::vector<device::DeviceMemory> taken(std::make_move_iterator(first), std::make_move_iterator(pieces_.end()));
    pieces_.erase(first, pieces_.end());
    return taken;
}

}  // namespace moepic
