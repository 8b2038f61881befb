// Streaming experts: options, and what was served.
#include <cmath>

#include "capi/handles.h"
#include "capi/stream_options.h"

using namespace moepic;

namespace {

constexpr int32_t kAuto = 6;

ExpertService& need_streamer(const moepic_model* handle) {
    need(handle, "model");
    ExpertService* streamer = handle->model->experts();
    if (!streamer) fail(Code::argument, "stream: every expert of this model is resident, so nothing is streamed");
    return *streamer;
}

void check_range(const char* name, int32_t value, int32_t low, int32_t high) {
    if (value < low || value > high) fail(Code::argument, "stream: ", name, " is ", value, ", expected ", low, " to ", high);
}

void check_rate(const char* name, double value) {
    if (!(value >= 0.0) || !std::isfinite(value))
        fail(Code::argument, "stream: ", name, " is ", value, ", expected a number of at least 0");
}

}  // namespace

void moepic_stream_options_init(moepic_stream_options* options) {
    if (!options) return;
    const StreamOptions defaults;
    const cache::PolicyOptions& policy = defaults.cache.policy;
    *options = {};
    options->size = sizeof(moepic_stream_options);
    options->cache_bytes = -1;
    options->policy = static_cast<int32_t>(policy.kind);
    options->policy_start = static_cast<int32_t>(policy.kind);
    options->eviction = -1;
    options->rho = policy.rho;
    options->omega = policy.omega;
    options->half_life = policy.half_life;
    options->granule_omega = defaults.cache.granule_omega;
    options->predictor = static_cast<int32_t>(defaults.predict.source);
    options->lookahead = defaults.lookahead;
    options->direct = 1;
    options->adapt = defaults.adapt;
}

void moepic::read_stream_options(LoadOptions& options, const moepic_stream_options* given) {
    const moepic_stream_options o = read_options(given, moepic_stream_options_init, "moepic_stream_options");
    check_range("policy", o.policy, 0, kAuto);
    if (o.policy == static_cast<int32_t>(cache::PolicyKind::belady))
        fail(Code::argument, "stream: belady knows the future and is for replay only");
    if (o.policy == static_cast<int32_t>(cache::PolicyKind::fixed) && !o.profile)
        fail(Code::argument, "stream: the policy 'static' needs a profile that says which experts to keep");
    check_range("policy_start", o.policy_start, 0, static_cast<int32_t>(cache::PolicyKind::lrfu));
    check_range("eviction", o.eviction, -1, 1);
    check_range("scope", o.scope, 0, 1);
    check_range("predictor", o.predictor, 0, 2);
    check_range("lookahead", o.lookahead, 1, 2);
    check_range("io", o.io, 0, 2);
    check_rate("link_bytes_s", o.link_bytes_s);
    check_rate("link_latency_s", o.link_latency_s);
    check_rate("cpu_bytes_s", o.cpu_bytes_s);
    if (o.link_bytes_s == 0.0 && options.device.kind == DeviceKind::cpu && (o.link_latency_s > 0.0 || o.cpu_bytes_s > 0.0))
        fail(Code::argument, "stream: a link latency or a CPU lane needs an emulated link (link_bytes_s above 0)");
    StreamOptions& s = options.streaming;
    options.stream = o.always != 0;
    s.choose_policy = o.policy == kAuto;
    s.cache.policy = {static_cast<cache::PolicyKind>(s.choose_policy ? o.policy_start : o.policy), o.rho, o.omega, o.half_life};
    cache::validate(s.cache.policy);
    s.adapt = o.adapt != 0;
    s.choose_eviction = o.eviction < 0;
    if (o.eviction >= 0) s.cache.eviction = static_cast<cache::Eviction>(o.eviction);
    s.cache.scope = static_cast<cache::Scope>(o.scope);
    s.cache.bypass = o.bypass != 0;
    s.cache.granule_omega = o.granule_omega;
    if (o.top) s.cache.top.assign(o.top, o.top + std::max(o.n_moe_layer, 0));
    if (o.budget) s.cache.budget.assign(o.budget, o.budget + std::max(o.n_moe_layer, 0));
    s.predict.source = static_cast<predict::Source>(o.predictor);
    s.lookahead = o.lookahead;
    s.cache_bytes = o.cache_bytes;
    s.staging_bytes = o.staging_bytes;
    s.io = static_cast<transfer::FileIo>(o.io);
    s.direct = o.direct != 0;
    s.strict = options.strict;
    s.link_bytes_s = o.link_bytes_s;
    s.link_latency_s = o.link_latency_s;
    s.cpu_bytes_s = o.cpu_bytes_s;
    if (o.profile) s.profile.assign(o.profile, o.profile + std::max<int64_t>(o.n_profile, 0));
}

int32_t moepic_model_stream_stats(moepic_stream_stats* out, const moepic_model* model) {
    return guard([&] {
        thread_local std::string lane, policy, note;
        const StreamStats s = need_streamer(model).stats();
        lane = s.lane_text;
        policy = s.policy;
        note = s.note;
        moepic_stream_stats stats{};
        stats.cache_bytes = s.cache_bytes;
        stats.resident_bytes = s.resident_bytes;
        stats.loads = s.loads;
        stats.evictions = s.evictions;
        stats.lane_bytes = s.lane.bytes;
        stats.lane_raw_bytes = s.lane.raw_bytes;
        stats.lane_dropped_bytes = s.lane.dropped_bytes;
        stats.n_transfers = s.lane.n_transfers;
        stats.n_cancelled = s.lane.n_cancelled;
        stats.n_failed = s.lane.n_failed;
        stats.lane_busy_s = s.lane.busy_s;
        stats.lane_bytes_s = s.lane_bytes_s;
        stats.cpu_bytes_s = s.cpu_bytes_s;
        stats.n_policy_changes = s.n_policy_changes;
        stats.prefetch_on = s.prefetch.is_on, stats.cpu_lane_on = s.cpu_lane.is_on, stats.graphs_on = s.graphs.is_on;
        stats.prefetch_cost = s.prefetch.cost, stats.cpu_lane_cost = s.cpu_lane.cost, stats.graphs_cost = s.graphs.cost;
        stats.n_prefetch_off = s.prefetch.n_switched_off, stats.n_cpu_lane_off = s.cpu_lane.n_switched_off;
        stats.n_graphs_off = s.graphs.n_switched_off;
        stats.n_graph_tokens = s.n_graph_tokens, stats.n_graphs = s.n_graphs;
        stats.n_device_routed = s.round_trips.n_routed_there;
        stats.n_round_trips = s.round_trips.n_layers;
        stats.waited_s = s.round_trips.waited_s;
        stats.planned_s = s.round_trips.planned_s;
        stats.lane = text_of(lane);
        stats.policy = text_of(policy);
        stats.note = text_of(note);
        stats.given_back_bytes = s.given_back_bytes;
        stats.pinned_bytes = s.pinned_bytes;
        stats.to_pin_bytes = s.to_pin_bytes;
        write_info(out, stats, "moepic_stream_stats");
    });
}

int32_t moepic_model_stream_layer(moepic_stream_layer* out, const moepic_model* model, int32_t layer, int32_t prefill) {
    return guard([&] {
        ExpertService& streamer = need_streamer(model);
        if (layer < 0 || layer >= streamer.n_layer())
            fail(Code::argument, "stream: MoE layer ", layer, " is outside 0 to ", streamer.n_layer() - 1);
        const StreamStats s = streamer.stats();
        const auto at = static_cast<size_t>(layer);
        const StreamTally& t = prefill ? s.prefill[at] : s.decode[at];
        const predict::Score& score = s.scores[at];
        moepic_stream_layer row{};
        row.layer = streamer.il(layer);
        row.n_hit = t.n_hit, row.n_partial = t.n_partial, row.n_miss = t.n_miss;
        row.n_resident = t.n_resident, row.n_link = t.n_link, row.n_in_place = t.n_in_place, row.n_prefetched = t.n_prefetched;
        row.demand_bytes = t.demand_bytes, row.useful_bytes = t.useful_bytes, row.wasted_bytes = t.wasted_bytes;
        row.late_bytes = t.late_bytes;
        row.stall_s = t.stall_s;
        if (!prefill) {
            row.n_guessed = score.n_guessed, row.n_right = score.n_right, row.n_used = score.n_used;
            row.n_switched_off = score.n_switched_off;
        }
        row.prefetches = score.is_on;
        write_info(out, row, "moepic_stream_layer");
    });
}

void moepic_model_reset_stream_stats(const moepic_model* model) {
    if (model && model->model->experts()) model->model->experts()->reset_stats();
}

int32_t moepic_model_expert_uses(double* out, int64_t n, const moepic_model* model) {
    return guard([&] {
        need(out, "out");
        const std::vector<double> uses = need_streamer(model).uses();
        if (n != static_cast<int64_t>(uses.size()))
            fail(Code::argument, "stream: ", n, " counts asked for, the model has ", uses.size(), " experts");
        std::copy(uses.begin(), uses.end(), out);
    });
}
