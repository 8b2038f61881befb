// The expert arena in a device's memory: slots by number, as expert/arena.h has them, but in pieces, so that some of it can be given back
// while the rest stays.
//
// Every piece holds the same share of every pool, in the order of slots. So without the last piece each pool is shorter at its end, by the
// same share for all, and no layer pays for the others:
//
//   pool 0   0 1 | 2 3 | 4 5 6       slot numbers in three pieces
//   pool 1     7 |   8 |     9
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "device/buffer.h"
#include "device/library.h"
#include "expert/arena.h"

namespace moepic {

class DeviceArena {
public:
    // Throws no_memory, names the arena.
    DeviceArena(const device::Library& library, std::vector<ArenaPool> pools);

    // Slots of two pieces never lie side by side, however close the pieces are: a copy that joins neighbours stays inside one.
    std::byte* slot(int64_t number) const noexcept { return slots_[static_cast<size_t>(number)]; }
    uint64_t bytes() const noexcept;

    // The fewest of the last pieces that have so many bytes together, or all there are.
    size_t pieces_with(uint64_t bytes) const noexcept;
    // Slots of every pool without the last n pieces.
    std::vector<int> slots_without(size_t n_pieces) const;
    // The last n pieces. Their slots must not be asked for again, and die with them, when nothing reads or writes there any more.
    std::vector<device::DeviceMemory> take_last(size_t n_pieces);

private:
    int64_t slots_in_first(const ArenaPool& pool, size_t n_pieces) const noexcept {
        return pool.n_slot * static_cast<int64_t>(n_pieces) / n_pieces_;
    }

    std::vector<ArenaPool> pools_;
    int64_t n_pieces_ = 1;  // as it was made
    std::vector<device::DeviceMemory> pieces_;
    std::vector<std::byte*> slots_;
};

}  // namespace moepic
