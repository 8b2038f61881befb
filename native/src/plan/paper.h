// MoEpic's configuration of cache budgets and split ratios (arXiv 2509.08342): every layer has one budget V and one split ratio theta; the
// tops of V / (theta b) hot experts are cached. Chosen jointly by divide and conquer over the layers and a fixed point between budgets and
// ratios.
//
// The paper's solver is known to us only from reviews; this is our reconstruction (routing-and-split.md, sections 1.2 to 1.4).
#pragma once

#include "plan/problem.h"

namespace moepic::plan {

Plan plan_paper(const Problem& problem);

// Equal shares for all layers (in proportion to their bytes) and one ratio for all: the best one, or the `top` given for every layer when >
// 0.
Plan plan_uniform(const Problem& problem, int top);

}  // namespace moepic::plan
