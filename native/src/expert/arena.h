// The arena: one allocation of fast memory, cut into equal slots per pool. Slot numbers run through the pools in order, as the cache's
// residency numbers them. Knows sizes and addresses; who is in a slot is the cache's business. Fast memory here is RAM; a device's is cut
// by engine/device_arena.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/region.h"

namespace moepic {

struct ArenaPool {
    size_t slot_bytes = 0;  // a multiple of 64
    int64_t n_slot = 0;
};

class Arena {
public:
    Arena() = default;
    // Throws Error(no_memory). Huge pages where they are to be had; pages cost nothing until a slot is filled.
    explicit Arena(std::span<const ArenaPool> pools);
    std::byte* slot(int64_t number) const noexcept;

private:
    struct Part {
        int64_t first;  // slot number
        size_t offset, slot_bytes;
    };
    std::vector<Part> parts_;
    Region region_;
};

}  // namespace moepic
