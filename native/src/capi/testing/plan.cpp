#include "capi/testing/plan.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include "base/error.h"
#include "capi/guard.h"
#include "plan/granules.h"
#include "plan/planner.h"

using namespace moepic;
using namespace moepic::plan;

namespace {

constexpr int32_t kByWorth = 5;
constexpr int32_t kEvaluate = 6;

Problem make_problem(const moepic_test_problem& given) {
    Problem problem;
    problem.machine = {given.link, given.cpu, given.together, given.device, given.cpu_sync_s};
    problem.n_used = given.n_used;
    problem.budget_bytes = given.budget_bytes;
    problem.n_token = given.n_token;
    if (given.n_token > 0) problem.routing = {given.routing, static_cast<size_t>(given.n_token) * given.n_layer * given.n_used};
    const int32_t* cuts = given.cuts;
    const double* hits = given.hits;
    for (int il = 0; il < given.n_layer; ++il) {
        if (given.n_expert[il] < 1 || given.n_cut[il] < 1) fail(Code::argument, "plan: MoE layer ", il, " has no expert or no legal cut");
        problem.layers.push_back({given.n_expert[il],
                                  given.n_granule[il],
                                  given.granule_bytes[il],
                                  given.compute_s[il],
                                  given.window_s[il],
                                  given.recall[il],
                                  {cuts, cuts + given.n_cut[il]},
                                  {hits, hits + given.n_expert[il] + 1}});
        cuts += given.n_cut[il];
        hits += given.n_expert[il] + 1;
    }
    return problem;
}

size_t n_experts(const Problem& problem) {
    size_t count = 0;
    for (const Layer& layer : problem.layers) count += layer.n_expert;
    return count;
}

}  // namespace

int32_t moepic_test_plan(moepic_test_layer_plan* layers, int32_t* resident, moepic_test_plan_totals* totals,
                         const moepic_test_problem* given, int32_t mode, int32_t top) {
    return guard([&] {
        const Problem problem = make_problem(*given);
        Plan plan;
        if (mode == kByWorth || mode == kEvaluate) {
            validate(problem);
            plan = mode == kByWorth ? plan_by_worth(problem) : evaluate_residency(problem, {resident, resident + n_experts(problem)});
        } else {
            plan = make_plan(problem, static_cast<Mode>(mode), top);
        }
        for (size_t il = 0; il < plan.layers.size(); ++il) {
            const LayerPlan& row = plan.layers[il];
            layers[il] = {row.bytes, row.top, row.slots, row.theta, row.miss_bytes, row.stall_s};
        }
        if (resident) std::copy(plan.resident.begin(), plan.resident.end(), resident);
        *totals = {plan.bytes, plan.objective_s, plan.stall_s, plan.link_share, plan.link_only_s, plan.both_s, plan.rounds};
    });
}
