// Our plan: how much of each expert is resident, and which lanes serve the rest (simulation.md, section 9).
//
//   min over r in {0, 1/G .. 1}   sum_l a_l + (1/N) sum_n max(K b / H, [ b sum_{e in A_ln} (1 - r_le) - F_l ]+ / R)
//   such that                     sum r_le b <= V,   F_l = q_l P T_l,   R = P, or min(P + C, D) with the CPU as a lane
//
// over N recorded tokens with routings A_ln. Layers meet only in the budget: each has a curve of its best time for every share (curve.h),
// and the shares are divided exactly over the curves (divide.h). Against HiGHS it was the integer optimum on each of 1300 random tiny
// models and within 1 % on each of 600 with 10 to 48 experts; docs/planning.md has what was found beyond that. A larger budget chooses from
// the same curves, so it is never slower. What no recorded token waits for is filled up by worth, for tokens to come.
#pragma once

#include "plan/problem.h"

namespace moepic::plan {

Plan plan_granules(const Problem& problem);

// The same residency from one sort, no saving ever recomputed: granule j of expert e is worth f_e (1 + omega (1 - j/G)), f the frequency
// decayed with a half-life of 24 tokens, omega = 1. Within some percent of plan_granules in a fraction of its time.
Plan plan_by_worth(const Problem& problem);

// What a residency [all experts of all layers, in order; granules] costs over the recorded tokens.
Plan evaluate_residency(const Problem& problem, const std::vector<int>& resident);

}  // namespace moepic::plan
