#include "plan/cost.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/error.h"

namespace moepic::plan {

void validate(const Problem& problem) {
    const Machine& m = problem.machine;
    if (!(m.link > 0.0) || m.cpu < 0.0 || m.together < 0.0 || !(m.device > 0.0) || m.cpu_sync_s < 0.0) {
        fail(Code::argument, "plan: rates are link ", m.link, ", cpu ", m.cpu, ", together ", m.together, ", device ", m.device,
             " bytes/s; expected link and device above 0 and no rate below 0");
    }
    if (problem.layers.empty() || problem.n_used < 1) {
        fail(Code::argument, "plan: ", problem.layers.size(), " MoE layers and ", problem.n_used,
             " experts per token; expected at least 1 of each");
    }
    if (problem.budget_bytes < 0) fail(Code::budget, "plan: the budget for experts is ", problem.budget_bytes, " bytes, expected >= 0");
    for (size_t il = 0; il < problem.layers.size(); ++il) {
        const Layer& layer = problem.layers[il];
        const auto wrong = [&](const char* what) { fail(Code::argument, "plan: MoE layer ", il, ": ", what); };
        if (layer.n_expert < problem.n_used || layer.n_granule < 1 || layer.granule_bytes < 1)
            wrong("fewer experts than a token uses, or no bytes");
        if (!(layer.compute_s >= 0.0) || !(layer.window_s >= 0.0) || !(layer.recall >= 0.0 && layer.recall <= 1.0)) {
            wrong("times must not be negative, and the recall lies between 0 and 1");
        }
        if (layer.cuts.empty() || layer.cuts.front() < 1 || layer.cuts.back() != layer.n_granule ||
            std::adjacent_find(layer.cuts.begin(), layer.cuts.end(), std::greater_equal<>()) != layer.cuts.end()) {
            wrong("legal cuts must ascend from at least 1 to all granules");
        }
        if (layer.hits.size() != static_cast<size_t>(layer.n_expert) + 1 || layer.hits.front() != 0.0 || !(layer.hits.back() <= 1.0) ||
            !std::is_sorted(layer.hits.begin(), layer.hits.end())) {
            wrong("the hit curve needs a value for 0 .. n_expert slots, rising from 0 to at most 1");
        }
    }
    const size_t expected = static_cast<size_t>(problem.n_token) * problem.layers.size() * problem.n_used;
    if (problem.n_token < 0 || problem.routing.size() != expected)
        fail(Code::argument, "plan: ", problem.routing.size(), " ids, expected ", expected);
    for (size_t i = 0; i < problem.routing.size(); ++i) {
        const size_t il = i / problem.n_used % problem.layers.size();
        if (problem.routing[i] < -1 || problem.routing[i] >= problem.layers[il].n_expert) {
            fail(Code::argument, "plan: expert ", problem.routing[i], " of ", problem.layers[il].n_expert, " in MoE layer ", il);
        }
    }
}

double miss_rate(const Machine& machine, bool with_cpu) {
    if (!with_cpu || machine.cpu <= 0.0) return machine.link;
    const double sum = machine.link + machine.cpu;
    return machine.together > 0.0 ? std::min(sum, machine.together) : sum;
}

Cost layer_cost(const Problem& problem, const Layer& layer, int top, int n_slot, double rate) {
    const int k = problem.n_used;
    const double found = layer.hits[std::min(n_slot, layer.n_expert)];
    const double b = static_cast<double>(layer.expert_bytes());
    const double theta = static_cast<double>(top) / layer.n_granule;
    Cost cost;
    // The number found is binomial; K is small, so its probabilities are written out.
    for (int hits = 0; hits <= k; ++hits) {
        double ways = 1.0;
        for (int i = 0; i < hits; ++i) ways *= static_cast<double>(k - i) / (i + 1);
        const double probability = ways * std::pow(found, hits) * std::pow(1.0 - found, k - hits);
        const double bytes = b * (k - theta * hits);
        const double load_s = bytes / rate;
        cost.miss_bytes += probability * bytes;
        cost.stall_s += probability * (std::max(0.0, layer.recall * load_s - layer.window_s) + (1.0 - layer.recall) * load_s);
    }
    return cost;
}

double price(const Cost& cost, double rate) {
    return cost.stall_s + 1e-6 * cost.miss_bytes / rate;
}

double floor_s(const Problem& problem, const Layer& layer, bool with_cpu) {
    const double rate = problem.machine.device + (with_cpu ? problem.machine.cpu : 0.0);
    return problem.n_used * static_cast<double>(layer.expert_bytes()) / rate;
}

}  // namespace moepic::plan
