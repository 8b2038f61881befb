// The hit curve of a recorded routing: how often n slots of a layer would have held what a token asked for. The planner's input.
#pragma once

#include <vector>

#include "cache/shape.h"

namespace moepic::cache {

// hits[n], n = 0 .. n_expert, of one layer under per-layer LRU, from one pass over stack distances, token-atomic (experts of a token count
// as used at once). Tokens before n_warm fill the stack and are not counted. First uses are misses for every n below n_expert;
// hits[n_expert] is 1.
std::vector<double> lru_hit_curve(const Routing& routing, int layer, int n_expert, int n_warm);

// The least concave curve above `hits`. A plan made on it is not lured by the steps of a short trace, and may take theta = 1 for granted
// without a window.
std::vector<double> concave_hull(const std::vector<double>& hits);

}  // namespace moepic::cache
