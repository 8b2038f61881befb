#include "capi/testing/cache.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "cache/cache.h"
#include "cache/hit_curve.h"
#include "cache/replay.h"
#include "capi/guard.h"

using namespace moepic;
using namespace moepic::cache;

struct moepic_test_cache {
    ExpertCache cache;
};

struct moepic_test_residency {
    Residency residency;
    Shape shape;
};

namespace {

Shape make_shape(const moepic_test_shape& given) {
    Shape shape;
    for (int il = 0; il < given.n_layer; ++il) shape.push_back({given.n_expert[il], given.n_granule[il], given.granule_bytes[il]});
    validate(shape);
    return shape;
}

size_t n_experts(const Shape& shape) {
    size_t count = 0;
    for (const LayerShape& layer : shape) count += layer.n_expert;
    return count;
}

Routing make_routing(const int32_t* ids, int n_token, int n_layer, int n_used) {
    if (n_token < 0 || n_used < 1) fail(Code::argument, "trace: ", n_token, " tokens of ", n_used, " ids");
    return {n_token, n_layer, n_used, {ids, static_cast<size_t>(n_token) * n_layer * n_used}};
}

CacheOptions make_options(const moepic_test_cache_options& given, int n_layer) {
    CacheOptions made;
    made.policy = {static_cast<PolicyKind>(given.policy), given.rho, given.omega, given.half_life};
    made.scope = given.scope ? Scope::global : Scope::per_layer;
    made.eviction = given.eviction ? Eviction::granules : Eviction::whole;
    made.bypass = given.bypass != 0;
    made.granule_omega = given.granule_omega;
    if (given.top) made.top.assign(given.top, given.top + n_layer);
    if (given.layer_budget) made.budget.assign(given.layer_budget, given.layer_budget + n_layer);
    return made;
}

Lanes make_lanes(const moepic_test_trace& trace, int n_layer) {
    Lanes lanes{trace.miss_bytes_s, trace.prefetch_bytes_s};
    lanes.wait_s = trace.wait_s, lanes.landing_bytes_s = trace.landing_bytes_s, lanes.compute_bytes_s = trace.compute_bytes_s;
    if (trace.window_s) lanes.window_s.assign(trace.window_s, trace.window_s + n_layer);
    return lanes;
}

Routing make_predicted(const moepic_test_trace& trace, int n_layer) {
    return trace.predicted ? make_routing(trace.predicted, trace.n_token, n_layer, trace.n_guess) : Routing{};
}

std::span<const double> profile_of(const moepic_test_cache_options& options, const Shape& shape) {
    return options.profile ? std::span(options.profile, n_experts(shape)) : std::span<const double>{};
}

void write_counters(const Residency& residency, int64_t* counters) {
    residency.check();
    counters[0] = residency.loads(), counters[1] = residency.evictions();
    counters[2] = residency.resident_bytes(), counters[3] = residency.capacity_bytes();
}

}  // namespace

int32_t moepic_test_cache_replay(moepic_test_tally* layers, double* token_stall_s, moepic_test_totals* totals,
                                 const moepic_test_shape* given, const moepic_test_trace* trace, const moepic_test_cache_options* options) {
    return guard([&] {
        const Shape shape = make_shape(*given);
        const Routing routing = make_routing(trace->ids, trace->n_token, given->n_layer, given->n_used);
        const Report report =
            replay(routing, make_predicted(*trace, given->n_layer), shape, options->budget_bytes, make_options(*options, given->n_layer),
                   make_lanes(*trace, given->n_layer), trace->n_warm, profile_of(*options, shape));
        for (size_t il = 0; il < report.layers.size(); ++il) {
            const Tally& t = report.layers[il];
            layers[il] = {t.n_hit,        t.n_partial,    t.n_miss,     t.needed_bytes, t.demand_bytes,
                          t.useful_bytes, t.wasted_bytes, t.late_bytes, t.stall_s};
        }
        std::copy(report.token_stall_s.begin(), report.token_stall_s.end(), token_stall_s);
        *totals = {report.loads, report.evictions, report.capacity_bytes, {}};
        report.note.copy(totals->note, sizeof totals->note - 1);
    });
}

int32_t moepic_test_cache_choose(int32_t* best, double* stall_s, const moepic_test_shape* given, const moepic_test_trace* trace,
                                 const moepic_test_cache_options* candidates, int32_t n_candidates) {
    return guard([&] {
        if (n_candidates < 1) fail(Code::argument, "auto: ", n_candidates, " candidates");
        const Shape shape = make_shape(*given);
        std::vector<CacheOptions> options;
        for (int i = 0; i < n_candidates; ++i) options.push_back(make_options(candidates[i], given->n_layer));
        *best = static_cast<int32_t>(choose(make_routing(trace->ids, trace->n_token, given->n_layer, given->n_used), shape,
                                            candidates[0].budget_bytes, options, make_lanes(*trace, given->n_layer), trace->n_warm,
                                            std::span(stall_s, static_cast<size_t>(n_candidates)), make_predicted(*trace, given->n_layer)));
    });
}

int32_t moepic_test_hit_curve(double* hits, const moepic_test_shape* given, const moepic_test_trace* trace, int32_t layer,
                              int32_t concave) {
    return guard([&] {
        const Shape shape = make_shape(*given);
        const Routing routing = make_routing(trace->ids, trace->n_token, given->n_layer, given->n_used);
        validate(routing, shape);
        if (layer < 0 || layer >= given->n_layer) fail(Code::argument, "hit curve: layer ", layer, " of ", given->n_layer);
        std::vector<double> curve = lru_hit_curve(routing, layer, given->n_expert[layer], trace->n_warm);
        if (concave) curve = concave_hull(curve);
        std::copy(curve.begin(), curve.end(), hits);
    });
}

int32_t moepic_test_cache_new(moepic_test_cache** made, const moepic_test_shape* given, const moepic_test_cache_options* options) {
    return guard([&] {
        const Shape shape = make_shape(*given);
        *made = new moepic_test_cache{ExpertCache(shape, options->budget_bytes, given->n_used, make_options(*options, given->n_layer))};
        if (options->profile) (*made)->cache.warm(profile_of(*options, shape));
    });
}

void moepic_test_cache_free(moepic_test_cache* cache) {
    delete cache;
}

int32_t moepic_test_cache_route(moepic_test_cache* cache, int64_t now, int32_t layer, const int32_t* ids, int32_t n_ids,
                                int32_t* n_resident, int32_t* n_kept, int32_t* n_routed) {
    return guard([&] {
        const auto routed = cache->cache.route(now, layer, std::span(ids, static_cast<size_t>(n_ids)));
        *n_routed = static_cast<int32_t>(routed.size());
        for (size_t i = 0; i < routed.size(); ++i) n_resident[i] = routed[i].n_resident, n_kept[i] = routed[i].n_kept;
    });
}

int32_t moepic_test_cache_release(moepic_test_cache* cache) {
    return guard([&] { cache->cache.release(); });
}

int32_t moepic_test_cache_shrink(moepic_test_cache* cache, int32_t percent, int32_t* n_moved) {
    return guard([&] {
        std::vector<int> n_slot;
        for (const Pool& pool : cache->cache.residency().pools()) n_slot.push_back(pool.n_slot * percent / 100);
        *n_moved = static_cast<int32_t>(cache->cache.shrink(n_slot).size());
    });
}

int32_t moepic_test_cache_state(moepic_test_cache* cache, int32_t* resident, int64_t* counters) {
    return guard([&] {
        const Shape& shape = cache->cache.shape();
        for (int il = 0; il < static_cast<int>(shape.size()); ++il) {
            for (int ie = 0; ie < shape[il].n_expert; ++ie) *resident++ = cache->cache.residency().n_resident(il, ie);
        }
        write_counters(cache->cache.residency(), counters);
    });
}

int32_t moepic_test_residency_new(moepic_test_residency** made, const moepic_test_shape* given, int32_t n_slot) {
    return guard([&] {
        const Shape shape = make_shape(*given);
        int64_t largest = 0;
        for (const LayerShape& layer : shape) largest = std::max(largest, layer.granule_bytes);
        *made = new moepic_test_residency{Residency(shape, {{largest, n_slot}}, std::vector<int>(shape.size(), 0)), shape};
    });
}

void moepic_test_residency_free(moepic_test_residency* residency) {
    delete residency;
}

int32_t moepic_test_residency_place(moepic_test_residency* residency, int32_t layer, int32_t expert, int32_t granule, int32_t* slot,
                                    uint32_t* generation) {
    return guard([&] {
        const SlotRef ref = residency->residency.place(layer, expert, granule);
        *slot = ref.slot, *generation = ref.generation;
    });
}

int32_t moepic_test_residency_evict(moepic_test_residency* residency, int32_t layer, int32_t expert, int32_t granule) {
    return guard([&] { residency->residency.evict(layer, expert, granule); });
}

int32_t moepic_test_residency_pin(moepic_test_residency* residency, int32_t slot, uint32_t generation, int32_t pinned) {
    return guard([&] {
        if (pinned)
            residency->residency.pin({slot, generation});
        else
            residency->residency.unpin({slot, generation});
    });
}

int32_t moepic_test_residency_runs(moepic_test_residency* residency, int32_t layer, int32_t expert, int32_t* runs, int32_t* n_run) {
    return guard([&] {
        *n_run = 0;
        for (const Run run : residency->residency.runs(layer, expert))
            runs[2 * *n_run] = run.first, runs[2 * *n_run + 1] = run.count, ++*n_run;
    });
}

int32_t moepic_test_residency_check(moepic_test_residency* residency, int64_t* counters) {
    return guard([&] { write_counters(residency->residency, counters); });
}
