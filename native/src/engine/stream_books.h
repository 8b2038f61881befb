// What is written down about experts that do not all fit, whoever moves their bytes: the cache and its policy, guesses and how they were
// scored, tallies per layer, and how often every expert was used. Moves nothing and knows no lanes. One thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cache/cache.h"
#include "engine/policy_chooser.h"
#include "engine/streaming.h"
#include "predict/predictor.h"

namespace moepic {

class StreamBooks {
public:
    StreamBooks(const std::vector<StreamLayer>& layers, int64_t cache_bytes, const StreamOptions& options);

    cache::ExpertCache& cache() { return *cache_; }
    const cache::ExpertCache& cache() const { return *cache_; }
    // Whether every granule of every layer could be resident at once.
    bool holds_all() const;
    predict::Predictor& predictor() { return *predictor_; }

    // n tokens start through the layers; miss_bytes_s: the rate at which what is missing comes.
    void begin_tokens(int64_t n, double miss_bytes_s);
    // What a batch uses in a layer, as ExpertCache::route; ids [n_tokens][n_used].
    std::span<const cache::Routed> route(int layer, std::span<const int32_t> ids, bool is_decode, bool bypass);
    // A layer is over. window_s: how long the lane had for what was fetched ahead. Returns the guess that had been made for it.
    std::span<const int32_t> account(int layer, std::span<const int32_t> ids, const StreamTally& tally, bool is_decode, double window_s,
                                     double miss_bytes_s);
    // Stall of a layer that only later became known.
    void add_stall(int layer, bool is_decode, double seconds);

    // Fills what the books know of the statistics; the rest is the lanes'.
    void write(StreamStats& stats) const;
    void reset();
    const std::vector<double>& uses() const { return uses_; }

private:
    const std::vector<int> n_used_;  // [layer]
    std::optional<cache::ExpertCache> cache_;
    std::optional<predict::Predictor> predictor_;
    std::optional<PolicyChooser> chooser_;
    std::vector<size_t> first_expert_;  // [layer] index of its expert 0 among all
    int n_policy_changes_ = 0;
    int64_t clock_ = -1;  // number of the last token, for the policy
    std::vector<int32_t> guessed_ids_;
    std::vector<StreamTally> decode_, prefill_;  // [layer]
    std::vector<double> uses_;                   // [all experts]
};

}  // namespace moepic
