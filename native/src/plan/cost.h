// The expected time of one layer of decode, as MoEpic's cost model has it (routing-and-split.md, section 1.4), with the distribution of
// misses inside the maximum and not their mean: stalls are convex, and that convexity is all a split can win by (section 1.6).
#pragma once

#include "plan/problem.h"

namespace moepic::plan {

struct Cost {
    double stall_s = 0.0;
    double miss_bytes = 0.0;
};

// n slots of tops of `top` granules. Each of the K experts is found with probability h(n), independently; a found one lacks its bottom,
// another everything. With x bytes missing, of which a share q is predicted:
//     stall = max(0, q x / R - T) + (1 - q) x / R
Cost layer_cost(const Problem& problem, const Layer& layer, int top, int n_slot, double rate);

// What minimisers compare: the stall, and a little for bytes that are moved unseen, so that of two plans without a stall the one that moves
// less is better.
double price(const Cost& cost, double rate);

// Time of a layer that waits for nothing: K experts on the device and the CPU together.
double floor_s(const Problem& problem, const Layer& layer, bool with_cpu);

}  // namespace moepic::plan
