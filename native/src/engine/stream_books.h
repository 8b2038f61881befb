// What is written down about experts that do not all fit, whoever moves their bytes: the cache and its policy, guesses and how they were
// scored, trials of what pays, tallies per layer, and how often every expert was used. Moves nothing and knows no lanes; seconds and bytes
// come from the caller. One thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cache/cache.h"
#include "engine/policy_chooser.h"
#include "engine/streaming.h"
#include "engine/trial.h"
#include "predict/predictor.h"

namespace moepic {

class StreamBooks {
public:
    // cache_options: options.cache with everything decided. Throws Error(budget) where a downgrade is an error.
    StreamBooks(const std::vector<StreamLayer>& layers, int64_t cache_bytes, const cache::CacheOptions& cache_options,
                const StreamOptions& options, bool has_cpu_lane);

    cache::ExpertCache& cache() { return *cache_; }
    const cache::ExpertCache& cache() const { return *cache_; }
    // Whether every granule of every layer could be resident at once.
    bool holds_all() const;

    // As trials have it, where something is tried at all.
    bool prefetches() const { return prefetch_trial_ ? prefetch_trial_->is_on() : source_ != predict::Source::none; }
    bool uses_cpu_lane() const { return cpu_trial_ ? cpu_trial_->is_on() : has_cpu_lane_; }

    // Whether running that layer's router early could help: not where everything is resident, nor while prefetching is off, except
    // `to_record` what would be guessed.
    bool wants_guess(int layer, bool to_record) const;
    // A guess for `layer`; true: act on it.
    bool foretell(int layer, std::span<const int32_t> ids);
    std::span<const int32_t> guess(int layer) const { return predictor_->guess(layer); }

    // n tokens start through the layers; miss_bytes_s: the rate at which what is missing comes.
    void begin_tokens(int64_t n, double miss_bytes_s);
    // What a batch uses in a layer, as ExpertCache::route; ids [n_tokens][n_used]. From `many` tokens on a prompt keeps only what is worth
    // more than what must leave, and so does whoever has a CPU lane.
    std::span<const cache::Routed> route(int layer, std::span<const int32_t> ids, bool is_decode, bool is_many);

    // As ExpertCache::shrink.
    std::vector<cache::Residency::Move> shrink(std::span<const int> n_slot);

    struct Layer {
        int layer = 0;
        std::span<const int32_t> ids;
        bool is_decode = false;
        int64_t missing_bytes = 0;  // not resident, whoever brought or computed them
        double window_s = 0.0;      // how long the lane had for what was fetched ahead
        double miss_bytes_s = 0.0;
    };
    // A layer is over. Returns the guess that had been made for it.
    std::span<const int32_t> account(const Layer& layer, const StreamTally& tally);
    // The same in two parts for a layer that had everything, was not routed here, and says only later what it used. `auto` does not hear of
    // it, for it replays tokens layer by layer: where it is in force (chooses_policy), all layers or none should go this way.
    void end_layer(int layer, bool is_decode, int64_t missing_bytes);
    void account_resident(int layer, std::span<const int32_t> ids, bool is_decode);
    bool chooses_policy() const { return chooser_.has_value(); }
    // Stall of a layer that only later became known.
    void add_stall(int layer, bool is_decode, double seconds) { tallies(is_decode)[static_cast<size_t>(layer)].stall_s += seconds; }

    // Fills what the books know of the statistics; the rest is the lanes'.
    void write(StreamStats& stats) const;
    void reset();
    // Uses of every expert since the start, all layers in order.
    const std::vector<double>& uses() const { return uses_; }

private:
    static constexpr int64_t kNoToken = 0, kManyUnderWay = -1;  // contexts that take turns: nobody's time is a token's

    std::vector<StreamTally>& tallies(bool is_decode) { return is_decode ? decode_ : prefill_; }
    void count_uses(int layer, std::span<const int32_t> ids);
    void score_guess(const Layer& layer, const StreamTally& tally);
    void end_token();

    const std::vector<int> n_used_;  // [layer]
    const predict::Source source_;
    const bool has_cpu_lane_, always_bypasses_;
    std::optional<cache::ExpertCache> cache_;
    std::optional<predict::Predictor> predictor_;
    std::optional<PolicyChooser> chooser_;
    std::optional<Trial> prefetch_trial_, cpu_trial_;
    std::vector<size_t> first_expert_;  // [layer] index of its expert 0 among all
    int n_policy_changes_ = 0;
    int64_t clock_ = -1;                // number of the last token, for the policy
    int64_t token_from_ns_ = kNoToken;  // when the token that is decoded began
    double token_missing_bytes_ = 0.0;  // of it
    std::vector<int32_t> guessed_ids_;
    std::vector<StreamTally> decode_, prefill_;  // [layer]
    std::vector<double> uses_;                   // [all experts]
};

}  // namespace moepic
