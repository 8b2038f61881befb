#include "plan/paper.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "plan/cost.h"
#include "plan/divide.h"

namespace moepic::plan {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kMostRounds = 16;

bool is_less(double a, double b) {
    return a + 1e-12 * std::abs(a) < b;
}

// One layer's answer to a budget: the split ratio and the slots it buys.
struct Choice {
    double price = kInfinity;
    int top = 0;
    int n_slot = 0;
};

class Solver {
public:
    Solver(const Problem& problem, double rate) : problem_(problem), rate_(rate), unit_(unit_bytes(problem)) {
        for (const Layer& layer : problem.layers) {
            std::vector<std::vector<double>> prices;
            for (const int top : layer.cuts) {
                std::vector<double> of_slots;
                for (int n = 0; n <= layer.n_expert; ++n) of_slots.push_back(price(layer_cost(problem, layer, top, n, rate), rate));
                prices.push_back(std::move(of_slots));
            }
            prices_.push_back(std::move(prices));
            most_.push_back(static_cast<int>(std::min<int64_t>(units_of(layer, unit_), problem.budget_bytes / unit_)));
        }
    }

    // theta given for each layer -> budgets.
    std::vector<int> divide_budget(const std::vector<int>& tops) const {
        std::vector<std::vector<double>> curves(problem_.layers.size());
        for (size_t il = 0; il < curves.size(); ++il) {
            for (int u = 0; u <= most_[il]; ++u) curves[il].push_back(best(il, u, tops[il]).price);
        }
        return divide(curves, problem_.budget_bytes / unit_);
    }

    // Budgets given -> theta: each layer alone, over its legal cuts.
    std::vector<int> choose_ratios(const std::vector<int>& budgets) const {
        std::vector<int> tops;
        for (size_t il = 0; il < budgets.size(); ++il) tops.push_back(best(il, budgets[il], 0).top);
        return tops;
    }

    double total(const std::vector<int>& budgets, const std::vector<int>& tops) const {
        double sum = 0.0;
        for (size_t il = 0; il < budgets.size(); ++il) sum += best(il, budgets[il], tops[il]).price;
        return sum;
    }

    // The best a layer can do with a budget, with the ratio given or, for top 0, free. Where ratios are equally good, a layer with a window
    // takes the smallest (its bottoms are hidden, and more tops mean less variance), one without takes the largest (fewest copies).
    Choice best(size_t il, int units, int top) const {
        const Layer& layer = problem_.layers[il];
        const bool smallest_first = layer.window_s > 0.0 && layer.recall > 0.0;
        const int n_cut = static_cast<int>(layer.cuts.size());
        Choice found;
        for (int i = 0; i < n_cut; ++i) {
            const int at = smallest_first ? i : n_cut - 1 - i;
            if (top > 0 && layer.cuts[at] != top) continue;
            const int64_t step = layer.cuts[at] * layer.granule_bytes;
            const int n_slot = static_cast<int>(std::min<int64_t>(units * unit_ / step, layer.n_expert));
            if (is_less(prices_[il][at][n_slot], found.price)) found = {prices_[il][at][n_slot], layer.cuts[at], n_slot};
        }
        return found;
    }

private:
    const Problem& problem_;
    double rate_;
    int64_t unit_;
    std::vector<int> most_;                                 // [layer] units that hold all its experts, or the budget
    std::vector<std::vector<std::vector<double>>> prices_;  // [layer][cut][slots]
};

LayerPlan fill_in(const Problem& problem, const Layer& layer, int top, int n_slot, double rate) {
    const Cost cost = layer_cost(problem, layer, top, n_slot, rate);
    return {.bytes = int64_t{n_slot} * top * layer.granule_bytes,
            .top = n_slot > 0 ? top : 0,
            .slots = n_slot,
            .theta = n_slot > 0 ? static_cast<double>(top) / layer.n_granule : 0.0,
            .miss_bytes = cost.miss_bytes,
            .stall_s = cost.stall_s};
}

// MoEpic moves what misses over the link; nothing is computed elsewhere.
void add_up(const Problem& problem, Plan& plan) {
    for (size_t il = 0; il < plan.layers.size(); ++il) {
        plan.bytes += plan.layers[il].bytes;
        plan.stall_s += plan.layers[il].stall_s;
        plan.objective_s += problem.layers[il].compute_s + floor_s(problem, problem.layers[il], false) + plan.layers[il].stall_s;
    }
    plan.link_share = 1.0;
    plan.link_only_s = plan.both_s = plan.objective_s;
}

}  // namespace

Plan plan_paper(const Problem& problem) {
    const double rate = miss_rate(problem.machine, false);
    const Solver solver(problem, rate);
    const size_t n_layer = problem.layers.size();

    // theta -> V -> theta ... until neither moves. A fixed point is a local optimum, so there are two starts: whole experts, as the paper's
    // baseline, and ratios left free during the division (top 0), which is the joint optimum on the grid of budgets.
    std::vector<int> whole;
    for (const Layer& layer : problem.layers) whole.push_back(layer.n_granule);
    Plan plan;
    std::vector<int> best_budgets, best_tops;
    double best = kInfinity;
    for (std::vector<int> tops : {std::vector<int>(n_layer, 0), whole}) {
        std::vector<int> budgets;
        for (int round = 1; round <= kMostRounds; ++round) {
            std::vector<int> next_budgets = solver.divide_budget(tops);
            std::vector<int> next_tops = solver.choose_ratios(next_budgets);
            const bool is_fixed = next_budgets == budgets && next_tops == tops;
            budgets = std::move(next_budgets), tops = std::move(next_tops);
            plan.rounds = std::max(plan.rounds, round);
            if (is_fixed) break;
        }
        const double total = solver.total(budgets, tops);
        if (is_less(total, best)) best = total, best_budgets = budgets, best_tops = tops;
    }
    for (size_t il = 0; il < n_layer; ++il) {
        const Choice choice = solver.best(il, best_budgets[il], best_tops[il]);
        plan.layers.push_back(fill_in(problem, problem.layers[il], choice.top, choice.n_slot, rate));
    }
    add_up(problem, plan);
    return plan;
}

Plan plan_uniform(const Problem& problem, int top) {
    const double rate = miss_rate(problem.machine, false);
    int64_t total = 0;
    for (const Layer& layer : problem.layers) total += layer.n_expert * layer.expert_bytes();
    const auto with_top = [&](int wanted) {
        Plan plan;
        for (const Layer& layer : problem.layers) {
            if (std::find(layer.cuts.begin(), layer.cuts.end(), wanted) == layer.cuts.end()) {
                fail(Code::argument, "plan: a top of ", wanted, " granules is not a legal cut of every layer");
            }
            const int64_t bytes = layer.n_expert * layer.expert_bytes();
            const auto part = static_cast<int64_t>(static_cast<long double>(std::min(problem.budget_bytes, total)) * bytes / total);
            const int n_slot = static_cast<int>(std::min<int64_t>(part / (wanted * layer.granule_bytes), layer.n_expert));
            plan.layers.push_back(fill_in(problem, layer, wanted, n_slot, rate));
        }
        add_up(problem, plan);
        return plan;
    };
    if (top > 0) return with_top(top);
    Plan best;
    best.objective_s = kInfinity;
    for (auto cut = problem.layers[0].cuts.rbegin(); cut != problem.layers[0].cuts.rend(); ++cut) {
        const bool legal = std::all_of(problem.layers.begin(), problem.layers.end(), [&](const Layer& layer) {
            return std::find(layer.cuts.begin(), layer.cuts.end(), *cut) != layer.cuts.end();
        });
        if (!legal) continue;
        Plan plan = with_top(*cut);
        if (is_less(plan.objective_s, best.objective_s)) best = std::move(plan);
    }
    if (best.layers.empty()) fail(Code::argument, "plan: layers have no legal cut in common; use a plan with a ratio per layer");
    return best;
}

}  // namespace moepic::plan
