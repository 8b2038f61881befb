#include "cache/cache.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace moepic::cache {
namespace {

std::vector<int> tops(const Shape& shape, const CacheOptions& options) {
    if (!options.top.empty()) return options.top;
    std::vector<int> all;
    for (const LayerShape& layer : shape) all.push_back(layer.n_granule);
    return all;
}

Pools make_pools(const Shape& shape, int64_t budget_bytes, int n_used, const CacheOptions& options, const std::vector<int>& top) {
    const Cut cut{top, options.eviction == Eviction::whole};
    return options.budget.empty() ? divide(shape, budget_bytes, options.scope, n_used, cut) : divide(shape, options.budget, cut);
}

}  // namespace

ExpertCache::ExpertCache(const Shape& shape, int64_t budget_bytes, int n_used, const CacheOptions& options)
    : shape_(shape),
      options_(options),
      top_(tops(shape, options)),
      pools_(make_pools(shape, budget_bytes, n_used, options, top_)),
      residency_(shape, pools_.pools, pools_.pool_of),
      policy_(shape, options.policy),
      leaving_(pools_.pools.size()) {
    size_t experts = 0;
    for (const LayerShape& layer : shape_) {
        first_.push_back(experts);
        experts += layer.n_expert;
    }
    listed_.resize(experts);
    measure_pools();
}

// What follows from the sizes of the pools.
void ExpertCache::measure_pools() {
    const std::vector<Pool>& pools = residency_.pools();
    std::vector<int64_t> most(pools.size(), 0);
    int64_t bytes = 0;
    for (size_t il = 0; il < shape_.size(); ++il) {
        most[pools_.pool_of[il]] += int64_t{shape_[il].n_expert} * top_[il];
        bytes += shape_[il].bytes();
    }
    is_roomy_.clear();
    for (size_t pool = 0; pool < most.size(); ++pool) is_roomy_.push_back(pools[pool].n_slot >= most[pool]);
    omega_ = options_.granule_omega >= 0.0 ? options_.granule_omega
                                           : 4.0 * static_cast<double>(residency_.capacity_bytes()) / static_cast<double>(bytes);
}

// Whole segments share their expert's rank; granules are ranked one by one.
Rank ExpertCache::rank_of(int layer, int expert, int granule) const {
    Rank rank = policy_.rank(layer, expert);
    if (options_.eviction == Eviction::granules) rank.worth += policy_.bonus(granule, shape_[layer].n_granule, omega_);
    return rank;
}

void ExpertCache::list(int layer, int expert) {
    if (is_roomy(layer)) return;
    const int n = residency_.n_resident(layer, expert);
    if (n == 0) return;
    Rank& rank = listed_[first_[layer] + expert];
    rank = rank_of(layer, expert, n - 1);
    leaving_[residency_.pool_of(layer)].insert({rank, layer, expert});
}

void ExpertCache::unlist(int layer, int expert) {
    if (!is_roomy(layer) && residency_.n_resident(layer, expert) > 0)
        leaving_[residency_.pool_of(layer)].erase({listed_[first_[layer] + expert], layer, expert});
}

// Frees `need` slots for something of rank `worth`, or nothing at all: what is pinned stays, and so does what is worth as much.
bool ExpertCache::make_room(int layer, int expert, int need, const Rank& worth, bool bypass) {
    const int pool = residency_.pool_of(layer);
    int found = residency_.n_free(pool);
    if (found >= need) return true;
    std::vector<std::pair<int, int>> victims;
    // A static cache never learns, and a bound that had to keep what it used last would be none.
    bypass = bypass || options_.policy.kind == PolicyKind::fixed || options_.policy.kind == PolicyKind::belady;
    for (auto it = leaving_[pool].begin(); found < need && it != leaving_[pool].end(); ++it) {
        const auto& [rank, il, ie] = *it;
        if (bypass && !(rank < worth)) break;
        if (residency_.is_pinned(il, ie) || (il == layer && ie == expert)) continue;
        victims.emplace_back(il, ie);
        found += options_.eviction == Eviction::whole ? residency_.n_resident(il, ie) : 1;
    }
    if (found < need) return false;
    for (const auto& [il, ie] : victims) drop_part(il, ie);
    return true;
}

// What of a resident expert leaves first: its last granule, or all of it.
void ExpertCache::drop_part(int layer, int expert) {
    unlist(layer, expert);
    const int n = residency_.n_resident(layer, expert);
    const int stay = options_.eviction == Eviction::whole ? 0 : n - 1;
    for (int j = n - 1; j >= stay; --j) residency_.evict(layer, expert, j);
    list(layer, expert);
}

// Gives slots to granules [n_resident, top) of an expert as far as they are worth it; returns how many.
int ExpertCache::keep(int layer, int expert, int n_resident, bool bypass) {
    const bool whole = options_.eviction == Eviction::whole;
    int n_kept = 0;
    unlist(layer, expert);
    for (int j = n_resident; j < top(layer);) {
        const int step = whole ? top(layer) - j : 1;
        if (!make_room(layer, expert, step, rank_of(layer, expert, j), bypass)) break;
        for (int k = 0; k < step; ++k) residency_.place(layer, expert, j + k);
        j += step, n_kept += step;
    }
    list(layer, expert);
    return n_kept;
}

void ExpertCache::warm(std::span<const double> weight) {
    policy_.seed(weight);
    // Most worth first; whole segments, or granule by granule across experts.
    std::vector<std::tuple<Rank, int, int, int>> order;
    for (int il = 0; il < static_cast<int>(shape_.size()); ++il) {
        const int step = options_.eviction == Eviction::whole ? top(il) : 1;
        for (int ie = 0; ie < shape_[il].n_expert; ++ie) {
            if (!(weight[first_[il] + ie] > 0.0)) continue;
            for (int j = 0; j < top(il); j += step) {
                Rank rank = rank_of(il, ie, j);
                // Recency policies have nothing to say before the first use; the profile decides.
                if (options_.policy.kind == PolicyKind::lru || options_.policy.kind == PolicyKind::belady)
                    rank.worth = weight[first_[il] + ie];
                order.emplace_back(rank, -il, -ie, -j);
            }
        }
    }
    std::sort(order.rbegin(), order.rend());
    for (const auto& [rank, il, ie, j] : order) {
        const int layer = -il, expert = -ie, first = -j;
        const int step = options_.eviction == Eviction::whole ? top(layer) : 1;
        if (residency_.n_free(residency_.pool_of(layer)) < step || residency_.n_resident(layer, expert) != first) continue;
        unlist(layer, expert);
        for (int k = 0; k < step; ++k) residency_.place(layer, expert, first + k);
        list(layer, expert);
    }
}

// Belady is a bound and never computes: it replaces what it just used, where a real cache has to wait for the layer to end.
void ExpertCache::pin(int layer, int expert, Run run) {
    if (options_.policy.kind == PolicyKind::belady || is_roomy(layer)) return;
    for (int j = run.first; j < run.first + run.count; ++j) {
        pinned_.push_back(residency_.find(layer, expert, j));
        residency_.pin(pinned_.back());
    }
}

std::span<const Routed> ExpertCache::route(int64_t now, int layer, std::span<const int32_t> experts, int n_used, bool bypass) {
    if (layer < 0 || layer >= static_cast<int>(shape_.size())) fail(Code::argument, "cache: layer ", layer, " of ", shape_.size());
    release();
    routed_.clear();
    seen_.assign(static_cast<size_t>(shape_[layer].n_expert), 0);
    for (const int32_t expert : experts) {
        if (expert >= shape_[layer].n_expert)
            fail(Code::argument, "cache: expert ", expert, " of ", shape_[layer].n_expert, " in layer ", layer);
        if (expert < 0 || seen_[expert]) continue;
        seen_[expert] = 1;
        routed_.push_back({expert, residency_.n_resident(layer, expert), 0});
    }
    for (const Routed& r : routed_) {
        unlist(layer, r.expert);
        pin(layer, r.expert, {0, r.n_resident});
    }
    tell_policy(now, layer, experts, n_used);
    for (const Routed& r : routed_) list(layer, r.expert);
    // The most worth chooses first: a slot taken now is pinned until the layer ends.
    std::vector<std::pair<Rank, Routed*>> missing;
    for (Routed& r : routed_) {
        if (r.n_resident < top(layer)) missing.emplace_back(policy_.rank(layer, r.expert), &r);
    }
    std::stable_sort(missing.begin(), missing.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    for (auto& [rank, r] : missing) {
        // Under belady an expert of this token may just have lost granules to a better one; elsewhere it is pinned and this is
        // r->n_resident.
        r->n_kept = keep(layer, r->expert, residency_.n_resident(layer, r->expert), bypass);
        pin(layer, r->expert, {r->n_resident, r->n_kept});
    }
    return routed_;
}

void ExpertCache::tell_policy(int64_t now, int layer, std::span<const int32_t> experts, int n_used) {
    const int64_t first = now + 1 - static_cast<int64_t>(experts.size()) / std::max(n_used, 1);
    for (size_t i = 0; i < experts.size(); ++i) {
        if (experts[i] >= 0) policy_.use(layer, experts[i], first + static_cast<int64_t>(i) / n_used);
    }
}

void ExpertCache::use(int64_t now, int layer, std::span<const int32_t> experts, int n_used) {
    for (const int32_t expert : experts) unlist(layer, expert);
    tell_policy(now, layer, experts, n_used);
    for (const int32_t expert : experts) list(layer, expert);
}

void ExpertCache::discard(int layer, int expert, int from) {
    const auto is_lost = [&](SlotRef ref) {
        const Slot& slot = residency_.slot(ref.slot);
        return slot.layer == layer && slot.expert == expert && slot.granule >= from;
    };
    for (const SlotRef ref : pinned_) {
        if (is_lost(ref)) residency_.unpin(ref);
    }
    std::erase_if(pinned_, is_lost);
    unlist(layer, expert);
    for (int j = residency_.n_resident(layer, expert) - 1; j >= from; --j) residency_.evict(layer, expert, j);
    list(layer, expert);
}

bool ExpertCache::is_complete(int layer) const {
    return is_roomy(layer) && residency_.n_free(residency_.pool_of(layer)) == 0 && pools_.scope == Scope::per_layer;
}

void ExpertCache::release() {
    for (const SlotRef ref : pinned_) residency_.unpin(ref);
    pinned_.clear();
}

void ExpertCache::change_policy(const PolicyOptions& options, const Routing& recent, int64_t now) {
    validate(recent, shape_);
    Policy policy(shape_, options);
    const int64_t first = now + 1 - recent.n_token;
    for (int token = 0; token < recent.n_token; ++token) {
        for (int il = 0; il < recent.n_layer; ++il) {
            for (const int32_t id : recent.at(token, il)) {
                if (id >= 0) policy.use(il, id, first + token);
            }
        }
    }
    policy_ = std::move(policy);
    options_.policy = options;
    list_all();
}

void ExpertCache::list_all() {
    for (auto& order : leaving_) order.clear();
    for (int il = 0; il < static_cast<int>(shape_.size()); ++il) {
        for (int ie = 0; ie < shape_[il].n_expert; ++ie) list(il, ie);
    }
}

std::vector<Residency::Move> ExpertCache::shrink(std::span<const int> n_slot) {
    const std::vector<Pool>& pools = residency_.pools();
    if (n_slot.size() != pools.size()) fail(Code::argument, "cache: sizes for ", n_slot.size(), " pools, there are ", pools.size());
    for (size_t pool = 0; pool < pools.size(); ++pool) {
        if (n_slot[pool] < 0 || n_slot[pool] > pools[pool].n_slot)
            fail(Code::argument, "cache: pool ", pool, " of ", pools[pool].n_slot, " slots can't shrink to ", n_slot[pool]);
    }
    release();
    std::vector<Residency::Move> moves;
    for (int pool = 0; pool < static_cast<int>(pools.size()); ++pool) {
        const int lost = pools[pool].n_slot - n_slot[pool];
        if (lost == 0) continue;
        if (is_roomy_[pool]) {  // nothing was to leave it: it has no order yet
            is_roomy_[pool] = 0;
            list_all();
        }
        while (residency_.n_free(pool) < lost) {
            const auto [rank, layer, expert] = *leaving_[pool].begin();
            drop_part(layer, expert);
        }
        const auto moved = residency_.shrink(pool, n_slot[pool]);
        moves.insert(moves.end(), moved.begin(), moved.end());
    }
    measure_pools();
    list_all();  // the cut weighs less in a smaller cache
    return moves;
}

}  // namespace moepic::cache
