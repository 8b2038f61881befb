#include "plan/planner.h"

#include "base/error.h"
#include "plan/granules.h"
#include "plan/paper.h"

namespace moepic::plan {
namespace {

Plan dispatch(const Problem& problem, Mode mode, int top) {
    switch (mode) {
        case Mode::automatic:
            return plan_granules(problem);
        case Mode::paper:
            return plan_paper(problem);
        case Mode::uniform:
            return plan_uniform(problem, 0);
        case Mode::fixed:
            if (top < 1) fail(Code::argument, "plan: fixed values need a top of at least one granule, found ", top);
            return plan_uniform(problem, top);
        case Mode::none: {
            Problem nothing = problem;
            nothing.budget_bytes = 0;
            return plan_paper(nothing);
        }
    }
    fail(Code::argument, "plan: ", static_cast<int>(mode), " is no mode");
}

}  // namespace

Plan make_plan(const Problem& problem, Mode mode, int top) {
    validate(problem);
    Plan plan = dispatch(problem, mode, top);
    if (plan.bytes > problem.budget_bytes) {
        fail(Code::internal, "plan: ", plan.bytes, " bytes planned in a budget of ", problem.budget_bytes);
    }
    return plan;
}

}  // namespace moepic::plan
