#include "plan/granules.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"
#include "plan/cost.h"
#include "plan/curve.h"
#include "plan/divide.h"
#include "plan/samples.h"

namespace moepic::plan {
namespace {

// Adds to `resident` the granules that are worth most to tokens to come, until one does not fit; experts that are not `wanted` stay as
// they are.
void fill_by_worth(const Problem& problem, const Samples& samples, const std::vector<char>& wanted, std::vector<int>& resident) {
    std::vector<std::tuple<double, size_t, size_t>> order;  // -worth, layer, expert
    int64_t left = problem.budget_bytes;
    for (size_t il = 0; il < problem.layers.size(); ++il) {
        const Layer& layer = problem.layers[il];
        for (size_t e = samples.first(il); e < samples.first(il) + layer.n_expert; ++e) {
            left -= resident[e] * layer.granule_bytes;
            if (!wanted[e] || samples.tokens(e).empty()) continue;
            for (int j = resident[e]; j < layer.n_granule; ++j) order.emplace_back(-samples.worth(e, j, layer.n_granule), il, e);
        }
    }
    std::sort(order.begin(), order.end());
    for (const auto& [worth, il, expert] : order) {
        if (problem.layers[il].granule_bytes > left) break;
        left -= problem.layers[il].granule_bytes;
        ++resident[expert];
    }
}

// Experts no recorded token waits for. Of the others, the division has left less than a unit and a granule per layer; handing that out
// here could make a plan faster than one of a slightly larger budget.
std::vector<char> unneeded(const Problem& problem, const Samples& samples, const std::vector<int>& resident, bool with_cpu) {
    std::vector<char> found(resident.size(), 1);
    for (size_t il = 0; il < problem.layers.size(); ++il) {
        const Layer& layer = problem.layers[il];
        const LayerTime time(problem, il, with_cpu);
        std::vector<double> misses = samples.misses(problem, il);
        const auto for_each_use = [&](auto&& visit) {
            for (size_t e = samples.first(il); e < samples.first(il) + layer.n_expert; ++e) {
                for (const int token : samples.tokens(e)) visit(e, misses[token]);
            }
        };
        for_each_use([&](size_t e, double& bytes) { bytes -= static_cast<double>(resident[e] * layer.granule_bytes); });
        for_each_use([&](size_t e, double& bytes) {
            if (time.of(bytes) > time.floor_s) found[e] = 0;
        });
    }
    return found;
}

std::vector<int> best_residency(const Problem& problem, const Samples& samples, bool with_cpu) {
    const int64_t unit = unit_bytes(problem);
    std::vector<LayerCurve> curves;
    std::vector<std::vector<double>> times;
    for (size_t il = 0; il < problem.layers.size(); ++il) {
        curves.push_back(layer_curve(problem, samples, il, with_cpu, unit));
        times.push_back(curves.back().time_s);
    }
    const std::vector<int> units = divide(times, problem.budget_bytes / unit);
    std::vector<int> resident;
    for (size_t il = 0; il < units.size(); ++il) {
        const auto& of_layer = curves[il].residents[units[il]];
        resident.insert(resident.end(), of_layer.begin(), of_layer.end());
    }
    fill_by_worth(problem, samples, unneeded(problem, samples, resident, with_cpu), resident);
    return resident;
}

Plan evaluate(const Problem& problem, const Samples& samples, const std::vector<int>& resident, bool with_cpu) {
    Plan plan;
    plan.resident = resident;
    for (size_t il = 0; il < problem.layers.size(); ++il) {
        const Layer& layer = problem.layers[il];
        LayerPlan row;
        std::vector<double> misses = samples.misses(problem, il);
        for (size_t e = samples.first(il); e < samples.first(il) + layer.n_expert; ++e) {
            row.bytes += resident[e] * layer.granule_bytes;
            row.top = std::max(row.top, resident[e]);
            row.slots += resident[e] > 0;
            for (const int token : samples.tokens(e)) misses[token] -= static_cast<double>(resident[e] * layer.granule_bytes);
        }
        row.theta = row.slots ? static_cast<double>(row.bytes) / static_cast<double>(row.slots * layer.expert_bytes()) : 0.0;
        const LayerTime time(problem, il, with_cpu);
        for (const double bytes : misses) {
            row.miss_bytes += bytes / problem.n_token;
            row.stall_s += (time.of(bytes) - time.floor_s) / problem.n_token;
        }
        plan.layers.push_back(row);
        plan.bytes += row.bytes;
        plan.stall_s += row.stall_s;
        plan.objective_s += layer.compute_s + time.floor_s + row.stall_s;
    }
    const Machine& m = problem.machine;
    plan.link_share = with_cpu ? m.link / (m.link + m.cpu) : 1.0;
    return plan;
}

// Runs `make` for the link alone and for both lanes, and keeps the choice that is faster.
template <class Make>
Plan with_best_lanes(const Problem& problem, const Samples& samples, Make&& make) {
    if (problem.n_token < 1) fail(Code::argument, "plan: this mode needs recorded routing of at least one token, or a prior");
    Plan link = evaluate(problem, samples, make(false), false);
    const double link_s = link.objective_s;
    if (problem.machine.cpu <= 0.0) {
        link.link_only_s = link.both_s = link_s;
        return link;
    }
    Plan both = evaluate(problem, samples, make(true), true);
    const double both_s = both.objective_s;
    Plan& best = both_s < link_s ? both : link;
    best.link_only_s = link_s, best.both_s = both_s;
    return std::move(best);
}

}  // namespace

Plan plan_granules(const Problem& problem) {
    const Samples samples(problem);
    return with_best_lanes(problem, samples, [&](bool with_cpu) { return best_residency(problem, samples, with_cpu); });
}

Plan plan_by_worth(const Problem& problem) {
    const Samples samples(problem);
    std::vector<int> resident(samples.n_expert(), 0);
    fill_by_worth(problem, samples, std::vector<char>(resident.size(), 1), resident);
    return with_best_lanes(problem, samples, [&](bool) { return resident; });
}

Plan evaluate_residency(const Problem& problem, const std::vector<int>& resident) {
    const Samples samples(problem);
    if (resident.size() != samples.n_expert()) fail(Code::argument, "plan: ", resident.size(), " experts, expected ", samples.n_expert());
    return with_best_lanes(problem, samples, [&](bool) { return resident; });
}

}  // namespace moepic::plan
