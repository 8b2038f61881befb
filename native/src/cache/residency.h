// Which granules are in fast memory, as data: (layer, expert, granule) -> slot. Knows no bytes and decides nothing; the cache decides.
//
// The arena is cut into pools of equal slots, and a slot holds one granule, the shortest run: so there is no fragmentation, any set of
// granules of an expert can be resident, and an expert can be there in several runs. What does not fit a pool cannot be placed, so
// residency never exceeds the budget by construction. One thread owns a Residency. A SlotRef held across an eviction is found out by its
// generation.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/shape.h"

namespace moepic::cache {

struct Pool {
    int64_t slot_bytes = 0;
    int n_slot = 0;
};

// A slot and the generation it had when the reference was taken; a slot's generation changes whenever its content does.
struct SlotRef {
    int slot = -1;
    uint32_t generation = 0;
    explicit operator bool() const { return slot >= 0; }
};

struct Slot {
    int layer = -1;  // -1: free
    int expert = 0;
    int granule = 0;
    int pool = 0;
    int pins = 0;
    uint32_t generation = 0;
};

class Residency {
public:
    // pool_of[layer] is the pool that holds the layer's granules; they must fit its slots.
    Residency(const Shape& shape, std::vector<Pool> pools, std::vector<int> pool_of);

    // The slot of a granule; empty when it is not resident.
    SlotRef find(int layer, int expert, int granule) const;
    int n_resident(int layer, int expert) const { return count_[expert_index(layer, expert)]; }
    std::vector<Run> runs(int layer, int expert) const;
    bool is_current(SlotRef ref) const { return ref && slots_[ref.slot].generation == ref.generation; }

    // Gives the granule a free slot of its layer's pool. The pool must have one and the granule must not be resident yet.
    SlotRef place(int layer, int expert, int granule);
    // Frees the granule's slot, which must not be pinned.
    void evict(int layer, int expert, int granule);
    // The pool keeps its first n_slot slots. What lies in the others, unpinned, moves to free ones of those, of which there must be enough;
    // the caller moves the bytes.
    struct Move {
        int from, to;
    };
    std::vector<Move> shrink(int pool, int n_slot);
    // A pinned slot keeps its content. Pins count; refusing a stale reference is what generations are for.
    void pin(SlotRef ref);
    void unpin(SlotRef ref);
    bool is_pinned(int layer, int expert) const { return pinned_[expert_index(layer, expert)] > 0; }

    int pool_of(int layer) const { return pool_of_[layer]; }
    const std::vector<Pool>& pools() const { return pools_; }
    int n_free(int pool) const { return static_cast<int>(free_[pool].size()); }
    const Slot& slot(int index) const { return slots_[index]; }

    // Granules placed and evicted since the start; loads() - evictions() == residents().
    int64_t loads() const { return loads_; }
    int64_t evictions() const { return evictions_; }
    int64_t residents() const { return loads_ - evictions_; }
    // Differs whenever find() could answer differently.
    int64_t version() const { return loads_ + evictions_ + n_moved_; }
    int64_t resident_bytes() const { return resident_bytes_; }  // of slots in use
    int64_t capacity_bytes() const;

    // Recounts everything from the slots; throws Error(internal) where a counter or an index disagrees. For tests.
    void check() const;

private:
    size_t expert_index(int layer, int expert) const { return first_expert_[layer] + static_cast<size_t>(expert); }
    size_t granule_index(int layer, int expert, int granule) const {
        return first_granule_[layer] + static_cast<size_t>(expert) * shape_[layer].n_granule + granule;
    }

    Shape shape_;
    std::vector<Pool> pools_;
    std::vector<int> pool_of_;
    std::vector<Slot> slots_;             // those that a pool has lost stay free for ever, so that numbers hold
    std::vector<int> first_slot_;         // [pool]
    std::vector<std::vector<int>> free_;  // [pool] stack of free slots
    std::vector<size_t> first_expert_, first_granule_;
    std::vector<int> slot_of_;  // [granule_index] -> slot or -1
    std::vector<int> count_;    // [expert_index] resident granules
    std::vector<int> pinned_;   // [expert_index] pins on its slots
    int64_t loads_ = 0, evictions_ = 0, n_moved_ = 0, resident_bytes_ = 0;
};

}  // namespace moepic::cache
