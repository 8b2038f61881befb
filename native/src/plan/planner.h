// The one entry of the room: a problem and a mode in, a plan out. Pure arithmetic; the same input gives the same plan.
#pragma once

#include "plan/problem.h"

namespace moepic::plan {

// automatic: granules.h. paper, uniform: paper.h. fixed: uniform budgets with tops of `top` granules. none: nothing cached.
// Throws Error(argument) for a problem that makes no sense, Error(budget) for a negative budget.
Plan make_plan(const Problem& problem, Mode mode, int top = 0);

}  // namespace moepic::plan
