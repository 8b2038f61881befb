#include "cache/replay.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace moepic::cache {
namespace {

void validate(const Lanes& lanes, const Shape& shape) {
    if (!(lanes.miss_bytes_s > 0.0)) fail(Code::argument, "replay: missing bytes arrive at ", lanes.miss_bytes_s, " bytes/s, expected > 0");
    if (!(lanes.wait_s >= 0.0 && lanes.landing_bytes_s >= 0.0 && lanes.compute_bytes_s >= 0.0)) {
        fail(Code::argument, "replay: a wait of ", lanes.wait_s, " s, landing at ", lanes.landing_bytes_s, " and computing at ",
             lanes.compute_bytes_s, " bytes/s, expected all >= 0");
    }
    if (lanes.window_s.empty()) return;
    if (lanes.window_s.size() != shape.size())
        fail(Code::argument, "replay: ", lanes.window_s.size(), " windows for ", shape.size(), " layers");
    for (const double window : lanes.window_s) {
        if (!(window >= 0.0)) fail(Code::argument, "replay: a window of ", window, " s, expected >= 0");
    }
    if (!(lanes.prefetch_bytes_s > 0.0))
        fail(Code::argument, "replay: windows need a prefetch rate, found ", lanes.prefetch_bytes_s, " bytes/s");
}

double stall_s(const Tally& of, const LayerShape& layer, const Lanes& lanes) {
    const double landing_s =
        lanes.landing_bytes_s > 0.0 ? static_cast<double>(of.demand_bytes + of.useful_bytes) / lanes.landing_bytes_s : 0.0;
    if (of.demand_bytes == 0) return landing_s;
    const double wait_s = static_cast<double>(of.demand_bytes) / lanes.miss_bytes_s + lanes.wait_s;
    const double hides_s =
        lanes.compute_bytes_s > 0.0 ? static_cast<double>(of.needed_bytes - layer.granule_bytes) / lanes.compute_bytes_s : 0.0;
    return std::max(landing_s, wait_s - hides_s);
}

// Whether `better` saves stall over `worse` beyond doubt. A difference counts when it is larger than this many standard errors, and kSurer
// / n more where there are n blocks: few blocks say little, and of many candidates one looks good by luck. moepic_gguf/choosing.py has the
// same rule.
bool is_convincing(std::span<const double> worse, std::span<const double> better) {
    constexpr size_t kBlock = 8;  // tokens
    constexpr double kSure = 1.0, kSurer = 4.0;
    const size_t n_block = worse.size() / kBlock;
    if (n_block < 2) return false;
    double sum = 0.0, sum2 = 0.0;
    for (size_t block = 0; block < n_block; ++block) {
        double saved = 0.0;
        for (size_t i = block * kBlock; i < (block + 1) * kBlock; ++i) saved += worse[i] - better[i];
        sum += saved, sum2 += saved * saved;
    }
    const auto n = static_cast<double>(n_block);
    const double error = std::sqrt(std::max(0.0, sum2 - sum * sum / n) / (n - 1.0) / n);
    return sum / n > (kSure + kSurer / n) * error;
}

}  // namespace

Report replay(const Routing& routing, const Routing& predicted, const Shape& shape, int64_t budget_bytes, const CacheOptions& options,
              const Lanes& lanes, int n_warm, std::span<const double> profile) {
    moepic::cache::validate(shape);
    moepic::cache::validate(routing, shape);
    validate(lanes, shape);
    const bool guesses = predicted.n_token > 0 && !lanes.window_s.empty();
    if (predicted.n_token > 0) moepic::cache::validate(predicted, shape);
    if (predicted.n_token > 0 && predicted.n_token != routing.n_token) {
        fail(Code::argument, "replay: ", routing.n_token, " tokens, but predictions for ", predicted.n_token);
    }
    ExpertCache cache(shape, budget_bytes, routing.n_used, options);
    if (options.policy.kind == PolicyKind::belady) cache.foresee(routing);
    if (!profile.empty()) cache.warm(profile);

    Report report;
    report.layers.resize(shape.size());
    report.note = cache.pools().note;
    report.capacity_bytes = cache.residency().capacity_bytes();
    std::vector<int64_t> arrived;  // bytes of each guess that came inside the window
    for (int token = 0; token < routing.n_token; ++token) {
        double token_stall_s = 0.0;
        for (int il = 0; il < routing.n_layer; ++il) {
            const LayerShape& layer = shape[il];
            Tally tally;
            // The window: guesses in order, each as far as it is missing.
            const auto guess = guesses ? predicted.at(token, il) : std::span<const int32_t>{};
            arrived.assign(guess.size(), 0);
            int64_t room = guesses ? static_cast<int64_t>(lanes.window_s[il] * lanes.prefetch_bytes_s) : 0;
            for (size_t i = 0; i < guess.size(); ++i) {
                if (guess[i] < 0) continue;
                const int64_t absent = (layer.n_granule - cache.residency().n_resident(il, guess[i])) * layer.granule_bytes;
                arrived[i] = std::min(room, absent);
                room -= arrived[i];
                tally.wasted_bytes += arrived[i];  // until it proves useful
            }
            for (const Routed& r : cache.route(token, il, routing.at(token, il))) {
                ++(r.n_resident == layer.n_granule ? tally.n_hit : r.n_resident > 0 ? tally.n_partial : tally.n_miss);
                tally.needed_bytes += layer.expert_bytes();
                int64_t absent = (layer.n_granule - r.n_resident) * layer.granule_bytes;
                const auto at = std::find(guess.begin(), guess.end(), r.expert);
                if (at != guess.end()) {
                    const int64_t came = arrived[at - guess.begin()];
                    tally.useful_bytes += came;
                    tally.wasted_bytes -= came;
                    absent -= came;
                    tally.late_bytes += absent;
                }
                tally.demand_bytes += absent;
            }
            cache.release();
            tally.stall_s = stall_s(tally, layer, lanes);
            if (token < n_warm) continue;
            Tally& sum = report.layers[il];
            sum.n_hit += tally.n_hit, sum.n_partial += tally.n_partial, sum.n_miss += tally.n_miss;
            sum.needed_bytes += tally.needed_bytes, sum.demand_bytes += tally.demand_bytes;
            sum.useful_bytes += tally.useful_bytes, sum.wasted_bytes += tally.wasted_bytes, sum.late_bytes += tally.late_bytes;
            sum.stall_s += tally.stall_s;
            token_stall_s += tally.stall_s;
        }
        if (token >= n_warm) report.token_stall_s.push_back(token_stall_s);
    }
    cache.residency().check();
    report.loads = cache.residency().loads();
    report.evictions = cache.residency().evictions();
    return report;
}

size_t choose(const Routing& recent, const Shape& shape, int64_t budget_bytes, std::span<const CacheOptions> candidates, const Lanes& lanes,
              int n_warm, std::span<double> stall_s, const Routing& predicted) {
    if (candidates.empty() || stall_s.size() != candidates.size()) {
        fail(Code::argument, "auto: ", candidates.size(), " candidates and room for ", stall_s.size(), " results");
    }
    size_t best = 0;
    std::vector<std::vector<double>> stalls;  // [candidate][counted tokens]
    for (size_t i = 0; i < candidates.size(); ++i) {
        if (candidates[i].policy.kind == PolicyKind::belady) fail(Code::argument, "auto: belady knows the future and cannot be chosen");
        stalls.push_back(replay(recent, predicted, shape, budget_bytes, candidates[i], lanes, n_warm, {}).token_stall_s);
        stall_s[i] = std::accumulate(stalls[i].begin(), stalls[i].end(), 0.0);
        if (stall_s[i] < stall_s[best]) best = i;
    }
    return is_convincing(stalls[0], stalls[best]) ? best : 0;
}

}  // namespace moepic::cache
