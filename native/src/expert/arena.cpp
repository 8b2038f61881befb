#include "expert/arena.h"

#include <algorithm>

namespace moepic {

Arena::Arena(std::span<const ArenaPool> pools) {
    int64_t first = 0;
    size_t offset = 0;
    for (const ArenaPool& pool : pools) {
        if (pool.n_slot == 0) continue;
        parts_.push_back({first, offset, pool.slot_bytes});
        first += pool.n_slot;
        offset += static_cast<size_t>(pool.n_slot) * pool.slot_bytes;
    }
    region_ = Region(offset, "expert arena");
}

std::byte* Arena::slot(int64_t number) const noexcept {
    const auto after =
        std::upper_bound(parts_.begin(), parts_.end(), number, [](int64_t wanted, const Part& part) { return wanted < part.first; });
    const Part& part = *(after - 1);
    return region_.data() + part.offset + static_cast<size_t>(number - part.first) * part.slot_bytes;
}

}  // namespace moepic
