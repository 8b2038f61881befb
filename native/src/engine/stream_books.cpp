#include "engine/stream_books.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "engine/timeline.h"

namespace moepic {
namespace {

cache::Shape shape_of(const std::vector<StreamLayer>& layers) {
    cache::Shape shape;
    for (const StreamLayer& layer : layers) {
        shape.push_back(
            {layer.n_expert, static_cast<int>(layer.stored.layout.n_granules), static_cast<int64_t>(layer.stored.layout.granule_bytes)});
    }
    return shape;
}

std::vector<int> used_of(const std::vector<StreamLayer>& layers) {
    std::vector<int> used;
    for (const StreamLayer& layer : layers) used.push_back(layer.n_used);
    return used;
}

Verdict verdict(const std::optional<Trial>& trial, bool is_on) {
    if (!trial) return {is_on};
    return {is_on, trial->cost(), trial->n_switched_off()};
}

}  // namespace

void StreamTally::add(const StreamTally& o) {
    n_hit += o.n_hit, n_partial += o.n_partial, n_miss += o.n_miss;
    n_resident += o.n_resident, n_link += o.n_link, n_in_place += o.n_in_place, n_prefetched += o.n_prefetched;
    demand_bytes += o.demand_bytes, useful_bytes += o.useful_bytes, wasted_bytes += o.wasted_bytes, late_bytes += o.late_bytes;
    stall_s += o.stall_s;
}

StreamBooks::StreamBooks(const std::vector<StreamLayer>& layers, int64_t cache_bytes, const cache::CacheOptions& cache_options,
                         const StreamOptions& options, bool has_cpu_lane)
    : n_used_(used_of(layers)), source_(options.predict.source), has_cpu_lane_(has_cpu_lane), always_bypasses_(cache_options.bypass) {
    const cache::Shape shape = shape_of(layers);
    const int most_used = *std::max_element(n_used_.begin(), n_used_.end());
    cache_.emplace(shape, cache_bytes, most_used, cache_options);
    if (!cache_->pools().note.empty()) {
        if (options.strict) fail(Code::budget, cache_->pools().note);
        log_message(LogLevel::warning, cache_->pools().note);
    }
    predictor_.emplace(static_cast<int>(layers.size()), options.predict);
    if (options.choose_policy) chooser_.emplace(shape, cache_bytes, cache_options, most_used);
    if (options.adapt && source_ != predict::Source::none) prefetch_trial_.emplace();
    if (options.adapt && has_cpu_lane) cpu_trial_.emplace();
    size_t experts = 0;
    for (const StreamLayer& layer : layers) {
        first_expert_.push_back(experts);
        experts += static_cast<size_t>(layer.n_expert);
    }
    uses_.assign(experts, 0.0);
    reset();
}

bool StreamBooks::holds_all() const {
    int64_t n_granule = 0, n_slot = 0;
    for (const cache::LayerShape& layer : cache_->shape()) n_granule += int64_t{layer.n_expert} * layer.n_granule;
    for (const cache::Pool& pool : cache_->residency().pools()) n_slot += pool.n_slot;
    return n_slot >= n_granule;
}

bool StreamBooks::wants_guess(int layer, bool to_record) const {
    return layer < static_cast<int>(n_used_.size()) && source_ == predict::Source::next_layer && (prefetches() || to_record) &&
           !cache_->is_complete(layer);
}

bool StreamBooks::foretell(int layer, std::span<const int32_t> ids) {
    predictor_->foretell(layer, ids);
    return prefetches() && predictor_->should_prefetch(layer);
}

void StreamBooks::begin_tokens(int64_t n, double miss_bytes_s) {
    clock_ += n;
    token_from_ns_ = n != 1 ? kNoToken : token_from_ns_ == kNoToken ? now_ns() : kManyUnderWay;
    token_missing_bytes_ = 0.0;
    if (!chooser_) return;
    if (const auto better = chooser_->poll(cache_->policy(), miss_bytes_s)) {
        cache_->change_policy(*better, chooser_->recent(), clock_);
        ++n_policy_changes_;
    }
}

std::span<const cache::Routed> StreamBooks::route(int layer, std::span<const int32_t> ids, bool is_decode, bool is_many) {
    if (is_decode && chooser_) chooser_->remember(layer, ids);
    count_uses(layer, ids);
    return cache_->route(clock_, layer, ids, n_used_[static_cast<size_t>(layer)], always_bypasses_ || is_many || uses_cpu_lane());
}

std::vector<cache::Residency::Move> StreamBooks::shrink(std::span<const int> n_slot) {
    const auto before = static_cast<double>(cache_->residency().capacity_bytes());
    auto moves = cache_->shrink(n_slot);
    if (chooser_ && before > 0.0) chooser_->scale_budget(static_cast<double>(cache_->residency().capacity_bytes()) / before);
    return moves;
}

std::span<const int32_t> StreamBooks::account(const Layer& layer, const StreamTally& tally) {
    const auto guess = predictor_->guess(layer.layer);
    guessed_ids_.assign(guess.begin(), guess.end());
    tallies(layer.is_decode)[static_cast<size_t>(layer.layer)].add(tally);
    if (layer.is_decode) score_guess(layer, tally);
    end_layer(layer.layer, layer.is_decode, layer.missing_bytes);
    return guessed_ids_;
}

void StreamBooks::end_layer(int layer, bool is_decode, int64_t missing_bytes) {
    if (!is_decode) return;
    token_missing_bytes_ += static_cast<double>(missing_bytes);
    if (layer + 1 == static_cast<int>(n_used_.size())) end_token();
}

void StreamBooks::account_resident(int layer, std::span<const int32_t> ids, bool is_decode) {
    count_uses(layer, ids);
    cache_->use(clock_, layer, ids, n_used_[static_cast<size_t>(layer)]);
    std::vector<int32_t> distinct(ids.begin(), ids.end());
    std::sort(distinct.begin(), distinct.end());
    const auto n_hit = std::unique(distinct.begin(), distinct.end()) - distinct.begin();
    const StreamTally tally{.n_hit = n_hit, .n_resident = n_hit * cache_->shape()[static_cast<size_t>(layer)].n_granule};
    tallies(is_decode)[static_cast<size_t>(layer)].add(tally);
    if (is_decode) score_guess({.layer = layer, .ids = ids, .is_decode = true}, tally);
}

void StreamBooks::count_uses(int layer, std::span<const int32_t> ids) {
    for (const int32_t id : ids) uses_[first_expert_[static_cast<size_t>(layer)] + static_cast<size_t>(id)] += 1.0;
}

// What is left of a token behind the last experts, the output and whatever the caller does between tokens, is the same for all.
void StreamBooks::end_token() {
    const int64_t from_ns = std::exchange(token_from_ns_, kNoToken);
    if (from_ns <= 0 || token_missing_bytes_ == 0.0) return;  // one that missed nothing says nothing
    const double seconds = 1e-9 * static_cast<double>(now_ns() - from_ns);
    // Two things tried at once would blur each other.
    const bool is_cpu_tried = cpu_trial_ && cpu_trial_->is_trying();
    if (cpu_trial_) cpu_trial_->observe(seconds, token_missing_bytes_);
    if (prefetch_trial_ && !is_cpu_tried) prefetch_trial_->observe(seconds, token_missing_bytes_);
}

// Prefetching gains what arrived inside the window, in which the lane had nothing else to do, and costs what ran over it in vain.
void StreamBooks::score_guess(const Layer& layer, const StreamTally& tally) {
    predict::Outcome outcome{.useful_bytes = tally.useful_bytes, .wasted_bytes = tally.wasted_bytes, .late_bytes = tally.late_bytes};
    if (layer.miss_bytes_s > 0.0) {
        const double useful_s = static_cast<double>(tally.useful_bytes) / layer.miss_bytes_s;
        const double wasted_s = static_cast<double>(tally.wasted_bytes) / layer.miss_bytes_s;
        outcome.saved_s = std::min(useful_s, layer.window_s);
        outcome.lost_s = std::min(wasted_s, std::max(0.0, useful_s + wasted_s - layer.window_s));
    }
    predictor_->observe(layer.layer, layer.ids, outcome);
}

void StreamBooks::write(StreamStats& stats) const {
    stats.decode = decode_;
    stats.prefill = prefill_;
    for (int layer = 0; layer < static_cast<int>(n_used_.size()); ++layer) stats.scores.push_back(predictor_->score(layer));
    stats.policy = cache::name(cache_->policy().kind);
    stats.note = cache_->pools().note;
    const cache::Residency& residency = cache_->residency();
    stats.cache_bytes = residency.capacity_bytes();
    stats.resident_bytes = residency.resident_bytes();
    stats.loads = residency.loads();
    stats.evictions = residency.evictions();
    stats.n_policy_changes = n_policy_changes_;
    stats.prefetch = verdict(prefetch_trial_, prefetches());
    stats.cpu_lane = verdict(cpu_trial_, uses_cpu_lane());
}

void StreamBooks::reset() {
    decode_.assign(n_used_.size(), {});
    prefill_.assign(n_used_.size(), {});
}

}  // namespace moepic
