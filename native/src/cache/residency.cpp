#include "cache/residency.h"

#include <utility>

#include "base/error.h"

namespace moepic::cache {

Residency::Residency(const Shape& shape, std::vector<Pool> pools, std::vector<int> pool_of)
    : shape_(shape), pools_(std::move(pools)), pool_of_(std::move(pool_of)), free_(pools_.size()) {
    validate(shape_);
    if (pool_of_.size() != shape_.size()) fail(Code::argument, "residency: ", shape_.size(), " layers, ", pool_of_.size(), " pools named");
    size_t experts = 0, granules = 0;
    for (size_t il = 0; il < shape_.size(); ++il) {
        const int pool = pool_of_[il];
        if (pool < 0 || pool >= static_cast<int>(pools_.size()) || pools_[pool].slot_bytes < shape_[il].granule_bytes) {
            fail(Code::argument, "residency: a granule of layer ", il, " (", shape_[il].granule_bytes, " bytes) does not fit pool ", pool);
        }
        first_expert_.push_back(experts);
        first_granule_.push_back(granules);
        experts += shape_[il].n_expert;
        granules += static_cast<size_t>(shape_[il].n_expert) * shape_[il].n_granule;
    }
    slot_of_.assign(granules, -1);
    count_.assign(experts, 0);
    pinned_.assign(experts, 0);
    for (size_t pool = 0; pool < pools_.size(); ++pool) {
        first_slot_.push_back(static_cast<int>(slots_.size()));
        for (int i = 0; i < pools_[pool].n_slot; ++i) {
            free_[pool].push_back(static_cast<int>(slots_.size()));
            slots_.emplace_back().pool = static_cast<int>(pool);
        }
        // Low slots first, so that a pool fills from its start.
        std::vector<int>(free_[pool].rbegin(), free_[pool].rend()).swap(free_[pool]);
    }
}

SlotRef Residency::find(int layer, int expert, int granule) const {
    const int slot = slot_of_[granule_index(layer, expert, granule)];
    return slot < 0 ? SlotRef{} : SlotRef{slot, slots_[slot].generation};
}

std::vector<Run> Residency::runs(int layer, int expert) const {
    std::vector<Run> found;
    bool open = false;
    for (int j = 0; j < shape_[layer].n_granule; ++j) {
        const bool here = slot_of_[granule_index(layer, expert, j)] >= 0;
        if (here && !open) found.push_back({j, 0});
        if (here) ++found.back().count;
        open = here;
    }
    return found;
}

SlotRef Residency::place(int layer, int expert, int granule) {
    auto& free = free_[pool_of_[layer]];
    int& at = slot_of_[granule_index(layer, expert, granule)];
    if (free.empty() || at >= 0) {
        fail(Code::internal, "residency: granule ", granule, " of expert ", expert, " in layer ", layer,
             at >= 0 ? " is already resident" : " finds no free slot");
    }
    at = free.back();
    free.pop_back();
    Slot& slot = slots_[at];
    slot.layer = layer, slot.expert = expert, slot.granule = granule;
    ++slot.generation;
    ++count_[expert_index(layer, expert)];
    ++loads_;
    resident_bytes_ += pools_[slot.pool].slot_bytes;
    return {at, slot.generation};
}

void Residency::evict(int layer, int expert, int granule) {
    int& at = slot_of_[granule_index(layer, expert, granule)];
    if (at < 0 || slots_[at].pins > 0) {
        fail(Code::internal, "residency: granule ", granule, " of expert ", expert, " in layer ", layer,
             at < 0 ? " is not resident" : " is pinned");
    }
    Slot& slot = slots_[at];
    slot.layer = -1;
    ++slot.generation;
    free_[slot.pool].push_back(at);
    at = -1;
    --count_[expert_index(layer, expert)];
    ++evictions_;
    resident_bytes_ -= pools_[slot.pool].slot_bytes;
}

std::vector<Residency::Move> Residency::shrink(int pool, int n_slot) {
    const int end = first_slot_[pool] + n_slot, old_end = first_slot_[pool] + pools_[pool].n_slot;
    auto& free = free_[pool];
    std::erase_if(free, [&](int slot) { return slot >= end; });
    std::vector<Move> moves;
    for (int from = end; from < old_end; ++from) {
        Slot& left = slots_[from];
        if (left.layer < 0) continue;
        if (left.pins > 0 || free.empty())
            fail(Code::internal, "residency: slot ", from, " can't leave pool ", pool, left.pins > 0 ? ": it is pinned" : ": no free slot");
        const int to = free.back();
        free.pop_back();
        Slot& taken = slots_[to];
        taken.layer = left.layer, taken.expert = left.expert, taken.granule = left.granule;
        ++taken.generation;
        left.layer = -1;
        ++left.generation;
        slot_of_[granule_index(taken.layer, taken.expert, taken.granule)] = to;
        moves.push_back({from, to});
        ++n_moved_;
    }
    pools_[pool].n_slot = n_slot;
    return moves;
}

void Residency::pin(SlotRef ref) {
    if (!is_current(ref)) fail(Code::internal, "residency: slot ", ref.slot, " changed since it was looked up");
    Slot& slot = slots_[ref.slot];
    ++slot.pins;
    ++pinned_[expert_index(slot.layer, slot.expert)];
}

void Residency::unpin(SlotRef ref) {
    if (!is_current(ref) || slots_[ref.slot].pins == 0)
        fail(Code::internal, "residency: slot ", ref.slot, " is not pinned by this reference");
    Slot& slot = slots_[ref.slot];
    --slot.pins;
    --pinned_[expert_index(slot.layer, slot.expert)];
}

int64_t Residency::capacity_bytes() const {
    int64_t bytes = 0;
    for (const Pool& pool : pools_) bytes += pool.slot_bytes * pool.n_slot;
    return bytes;
}

void Residency::check() const {
    std::vector<int> used(pools_.size(), 0), count(count_.size(), 0), pins(count_.size(), 0);
    int64_t resident = 0, bytes = 0;
    for (size_t i = 0; i < slots_.size(); ++i) {
        const Slot& slot = slots_[i];
        if (slot.layer < 0) continue;
        if (static_cast<int>(i) >= first_slot_[slot.pool] + pools_[slot.pool].n_slot)
            fail(Code::internal, "residency: slot ", i, " is in use, and pool ", slot.pool, " has lost it");
        ++used[slot.pool], ++resident;
        bytes += pools_[slot.pool].slot_bytes;
        ++count[expert_index(slot.layer, slot.expert)];
        pins[expert_index(slot.layer, slot.expert)] += slot.pins;
        if (slot_of_[granule_index(slot.layer, slot.expert, slot.granule)] != static_cast<int>(i)) {
            fail(Code::internal, "residency: slot ", i, " holds a granule that is looked up elsewhere");
        }
    }
    for (size_t pool = 0; pool < pools_.size(); ++pool) {
        if (used[pool] + n_free(static_cast<int>(pool)) != pools_[pool].n_slot)
            fail(Code::internal, "residency: pool ", pool, " lost a slot");
    }
    if (resident != residents() || bytes != resident_bytes_ || bytes > capacity_bytes() || count != count_ || pins != pinned_) {
        fail(Code::internal, "residency: counted ", resident, " granules, ", bytes, " bytes; expected ", residents(), " and ",
             resident_bytes_);
    }
}

}  // namespace moepic::cache
