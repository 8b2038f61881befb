// Runs a cache over recorded routing, token by token, without weights: what moved, what waited, and only then what hit.
//
// Token-atomic: a layer's experts are looked up together, then told to the policy together, as in the engine; flattening tokens into single
// accesses inflates misses by a quarter (routing-and-split.md, section 2).
//
// The stall of a layer is what it takes beyond computing its experts. What is missing needs its time on the lanes together, and a layer
// that misses anything waits besides (a request's latency, the last granule's landing); all the while granules that are there are computed,
// and only the one that comes last has nothing left to hide behind. Landing takes the threads that compute. So misses spread over layers
// cost less than the same bytes in a few. Before each layer there is a window of `window_s` in which predicted granules may arrive, guesses
// in order; wrong ones move real bytes and use up the window.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cache/cache.h"

namespace moepic::cache {

struct Lanes {
    double miss_bytes_s = 0.0;       // rate at which missing granules are served after routing, all lanes together
    double prefetch_bytes_s = 0.0;   // rate at which granules arrive in the window
    std::vector<double> window_s{};  // [layer]; empty: no window
    double wait_s = 0.0;             // of a layer that misses anything, besides its bytes
    double landing_bytes_s = 0.0;    // granules made ready for the kernels once they came; 0: they are ready as they come
    double compute_bytes_s = 0.0;    // of routed experts; 0: nothing hides behind computing
};

// Per layer, of counted tokens. A routed expert is a hit (all resident), a partial hit (some), or a miss (none); never merged.
struct Tally {
    int64_t n_hit = 0, n_partial = 0, n_miss = 0;
    int64_t needed_bytes = 0;  // of all routed experts
    int64_t demand_bytes = 0;  // asked for after routing
    int64_t useful_bytes = 0;  // prefetched and used
    int64_t wasted_bytes = 0;  // prefetched in vain
    int64_t late_bytes = 0;    // predicted rightly, but the window closed first: part of demand_bytes
    double stall_s = 0.0;
};

struct Report {
    std::vector<Tally> layers;
    std::vector<double> token_stall_s;  // [counted tokens]
    int64_t loads = 0, evictions = 0;   // granules, all tokens
    int64_t capacity_bytes = 0;
    std::string note;  // of the scope
};

// Replays all tokens; those from n_warm on are counted. predicted: ids known before the router spoke, same layout, or n_token 0 for none.
// profile: as ExpertCache::warm; empty starts cold. What is prefetched is kept under the same rule as what is streamed.
Report replay(const Routing& routing, const Routing& predicted, const Shape& shape, int64_t budget_bytes, const CacheOptions& options,
              const Lanes& lanes, int n_warm, std::span<const double> profile);

// Replays `recent` through each candidate and returns the index of the one that stalls least, or 0, which is the one in force, where the
// tokens do not tell them apart: the stall saved per block of tokens must be above its error (tokens that follow each other are alike, so
// blocks are compared). stall_s [candidate] receives the stall of each. predicted: as for replay. This is the policy `auto`; belady is no
// candidate.
size_t choose(const Routing& recent, const Shape& shape, int64_t budget_bytes, std::span<const CacheOptions> candidates, const Lanes& lanes,
              int n_warm, std::span<double> stall_s, const Routing& predicted = {});

}  // namespace moepic::cache
