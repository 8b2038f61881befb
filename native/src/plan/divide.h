// Divides a budget among layers that are independent but for its sum: divide and conquer, halves solved alone and merged. Both `paper` and
// `automatic` divide like this; they differ in what a layer can do with its share.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/problem.h"

namespace moepic::plan {

// Budgets are counted in units: exact to the byte for models of few granules, else a 4096th of all experts. A unit depends on the model
// alone, so whatever a budget can do, a larger one can too: plans are monotone.
int64_t unit_bytes(const Problem& problem);

// Units that hold all experts of a layer.
int units_of(const Layer& layer, int64_t unit);

// curves [layer][units, from 0]: the price of a layer with so many units, not increasing. Returns the units of each layer, at most `units`
// together, that make the sum least. Exact, whether or not the curves are convex.
std::vector<int> divide(std::span<const std::vector<double>> curves, int64_t units);

}  // namespace moepic::plan
