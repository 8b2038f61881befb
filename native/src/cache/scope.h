// How a budget becomes pools: one pool per layer, or pools shared by all layers. Guards the cliff of the shared one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache/residency.h"
#include "cache/shape.h"

namespace moepic::cache {

enum class Scope : int { per_layer = 0, global = 1 };

struct Pools {
    Scope scope = Scope::per_layer;
    std::vector<Pool> pools;
    std::vector<int> pool_of;  // [layer]
    std::string note;          // why the scope is not the one asked for; empty when it is
};

// What of an expert may be cached, per layer, and in which steps.
struct Cut {
    std::vector<int> top;  // [layer] granules of an expert that may be cached, 1 .. G
    bool whole = true;     // they come and go together, so a pool is a multiple of them; else one by one
    int step(size_t layer) const { return whole ? top[layer] : 1; }
};

// Per layer: the budget in proportion to each layer's bytes, in whole steps of the cut, what rounding leaves over given to the layers it
// robbed most. Global: one pool per granule size, so that no slot is larger than what it holds. A global pool smaller than one token's
// demand (n_used tops in each layer) returns no hit at all under recency: every expert is evicted before the next token comes round. Then
// the scope becomes per layer, and `note` says so.
Pools divide(const Shape& shape, int64_t budget_bytes, Scope asked, int n_used, const Cut& cut);

// The budgets of a plan, one per layer.
Pools divide(const Shape& shape, const std::vector<int64_t>& budget_bytes, const Cut& cut);

}  // namespace moepic::cache
