// The policy `auto`: keeps the recent decode routing, replays it through candidate policies on a thread of its own, and names the one that
// would have stalled less than the one in force, beyond doubt. Decides nothing else; what is in force changes only when its owner takes the
// choice.
//
// Threads: everything but the replay belongs to one owner at a time. The replay reads a copy.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "cache/cache.h"
#include "cache/replay.h"

namespace moepic {

class PolicyChooser {
public:
    // `base` is the cache as it runs; candidates differ from it in their policy.
    PolicyChooser(const cache::Shape& shape, int64_t budget_bytes, const cache::CacheOptions& base, int n_used);
    ~PolicyChooser();

    // What a decoded token used in `layer`; layer 0 starts a token.
    void remember(int layer, std::span<const int32_t> ids);
    // Between tokens: starts a replay when enough is new, and gives its choice once, when that is not `current`, the policy in force.
    std::optional<cache::PolicyOptions> poll(const cache::PolicyOptions& current, double miss_bytes_s);
    // The cache has another size from here on.
    void scale_budget(double factor);
    // The tokens remembered, whole ones only.
    cache::Routing recent() const;

private:
    void choose(std::vector<int32_t> ids, cache::PolicyOptions current, double miss_bytes_s);

    const cache::Shape shape_;
    // Read by the worker; written while there is none.
    int64_t budget_bytes_;
    cache::CacheOptions base_;
    const int n_used_;
    std::vector<int32_t> ids_;  // [token][layer][n_used]
    int new_tokens_ = 0;
    std::thread worker_;
    // choice_ is written by the worker before is_ready_ is released, and read after it was acquired.
    std::atomic<bool> is_ready_{false};
    std::optional<cache::PolicyOptions> choice_;  // empty: the replay failed
};

}  // namespace moepic
