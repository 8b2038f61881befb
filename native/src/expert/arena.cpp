#include "expert/arena.h"

#include <algorithm>

namespace moepic {

size_t arena_bytes(std::span<const ArenaPool> pools) noexcept {
    size_t bytes = 0;
    for (const ArenaPool& pool : pools) bytes += static_cast<size_t>(pool.n_slot) * pool.slot_bytes;
    return bytes;
}

Arena::Arena(std::span<const ArenaPool> pools) : Arena(pools, nullptr) {
    region_ = Region(arena_bytes(pools), "expert arena");
    memory_ = region_.data();
}

Arena::Arena(std::span<const ArenaPool> pools, std::byte* memory) : memory_(memory) {
    int64_t first = 0;
    size_t offset = 0;
    for (const ArenaPool& pool : pools) {
        if (pool.n_slot == 0) continue;
        parts_.push_back({first, offset, pool.slot_bytes});
        first += pool.n_slot;
        offset += static_cast<size_t>(pool.n_slot) * pool.slot_bytes;
    }
}

std::byte* Arena::slot(int64_t number) const noexcept {
    const auto after =
        std::upper_bound(parts_.begin(), parts_.end(), number, [](int64_t wanted, const Part& part) { return wanted < part.first; });
    const Part& part = *(after - 1);
    return memory_ + part.offset + static_cast<size_t>(number - part.first) * part.slot_bytes;
}

}  // namespace moepic
