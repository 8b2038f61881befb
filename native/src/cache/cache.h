// The expert cache: for each routed layer, what is resident, what of the rest is worth keeping, and what has to leave for it.
// Pure: tokens, ids and slots; no bytes, no clocks, no streams. One thread owns it.
//
//   route(layer, ids)     hits are counted against what was resident before; residents are pinned; every routed expert is told to the
//   policy;
//                         missing granules get slots where they are worth more than what holds them now, the others are to be streamed
//                         through staging and forgotten (bypass).
//   use(layer, ids)       the policy hears of them, and no more: for a layer that had everything and asked nobody.
//   discard(...)          granules that were given slots did not come: they are resident no more.
//   release()             the layer is computed: pins end.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <tuple>
#include <vector>

#include "cache/policy.h"
#include "cache/residency.h"
#include "cache/scope.h"
#include "cache/shape.h"

namespace moepic::cache {

enum class Eviction : int {
    whole = 0,     // an expert's cached part comes and goes at once; with top < G that is MoEpic's cache of tops
    granules = 1,  // one granule at a time, bottoms first, by worth
};

struct CacheOptions {
    PolicyOptions policy;
    Scope scope = Scope::per_layer;
    Eviction eviction = Eviction::granules;
    bool bypass =
        false;  // keep only what is worth more than what must leave; moved up to 15 % more bytes on recorded traces, so off by default
    double granule_omega =
        -1.0;                // weight of the cut in a granule's worth; below 0: 4 budget / bytes of all experts (simulation.md, section 9)
    std::vector<int> top{};  // [layer] granules of an expert that may be cached; empty: all
    std::vector<int64_t> budget{};  // [layer] bytes, from a plan; empty: the total is divided by `scope`
};

// One routed expert of a layer, as found. Granules [0, n_resident) were resident; of the others, [n_resident, n_resident + n_kept) have got
// slots to be loaded into, and the rest pass through.
struct Routed {
    int expert = 0;
    int n_resident = 0;
    int n_kept = 0;
};

class ExpertCache {
public:
    // n_used: experts a token uses per layer, for the guard of a global scope.
    ExpertCache(const Shape& shape, int64_t budget_bytes, int n_used, const CacheOptions& options);

    // Starts warm: `weight` as Policy::seed; the pools are filled with what is worth most.
    void warm(std::span<const double> weight);
    void foresee(const Routing& routing) { policy_.foresee(routing); }

    // The experts token `now` uses in `layer`; -1 is skipped. Valid until the next call. The pins of a layer that was not released end
    // here.
    std::span<const Routed> route(int64_t now, int layer, std::span<const int32_t> experts) {
        return route(now, layer, experts, static_cast<int>(experts.size()), options_.bypass);
    }
    // The same for a batch: the ids of several tokens one after the other, n_used each, the last of them token `now`; an expert is listed
    // once, where it came first. With bypass only what is worth more than what must leave is kept, which is how a prompt leaves the
    // experts of decode alone.
    std::span<const Routed> route(int64_t now, int layer, std::span<const int32_t> experts, int n_used, bool bypass);
    // The same for experts that were all resident, after the fact: told to the policy, nothing is counted, pinned or given a slot.
    void use(int64_t now, int layer, std::span<const int32_t> experts, int n_used);
    // Granules [from, n) of an expert were to be loaded and were not.
    void discard(int layer, int expert, int from);
    void release();

    // Another policy from here on. It learns from `recent`, whose last token is `now`; residents stay.
    void change_policy(const PolicyOptions& options, const Routing& recent, int64_t now);
    const PolicyOptions& policy() const { return options_.policy; }
    // Between layers: pool p keeps n_slot[p] slots, at most what it has. What is worth least leaves; returns what else moves.
    std::vector<Residency::Move> shrink(std::span<const int> n_slot);
    // Whether everything of the layer that may be cached is resident.
    bool is_complete(int layer) const;
    // What the expert is worth now, to order transfers by.
    Rank worth(int layer, int expert) const { return policy_.rank(layer, expert); }

    const Residency& residency() const { return residency_; }
    const Pools& pools() const { return pools_; }  // as they were made; residency().pools() as they are
    const Shape& shape() const { return shape_; }
    double granule_omega() const { return omega_; }

private:
    // A resident expert in the order of leaving: by the worth of the part that would leave first.
    using Entry = std::tuple<Rank, int, int>;  // rank, layer, expert

    int top(int layer) const { return top_[layer]; }
    // Nothing ever leaves a pool that holds all it may be asked to: no order of leaving, no pins.
    bool is_roomy(int layer) const { return is_roomy_[residency_.pool_of(layer)]; }
    Rank rank_of(int layer, int expert, int granule) const;
    void measure_pools();
    void list(int layer, int expert);
    void list_all();
    void drop_part(int layer, int expert);
    void unlist(int layer, int expert);
    void tell_policy(int64_t now, int layer, std::span<const int32_t> experts, int n_used);
    int keep(int layer, int expert, int n_resident, bool bypass);
    void pin(int layer, int expert, Run run);
    bool make_room(int layer, int expert, int need, const Rank& worth, bool bypass);

    Shape shape_;
    CacheOptions options_;
    std::vector<int> top_;
    double omega_ = 0.0;
    Pools pools_;
    Residency residency_;
    Policy policy_;
    std::vector<std::set<Entry>> leaving_;  // [pool] residents, least worth first
    std::vector<size_t> first_;             // [layer] index of expert 0 in `listed_`
    std::vector<Rank> listed_;              // rank an expert is listed under
    std::vector<Routed> routed_;
    std::vector<SlotRef> pinned_;
    std::vector<char> seen_;      // [expert] of the layer being routed
    std::vector<char> is_roomy_;  // [pool]
};

}  // namespace moepic::cache
