#include "engine/stream_books.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"

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

}  // namespace

StreamBooks::StreamBooks(const std::vector<StreamLayer>& layers, int64_t cache_bytes, const StreamOptions& options)
    : n_used_(used_of(layers)) {
    const cache::Shape shape = shape_of(layers);
    const int most_used = *std::max_element(n_used_.begin(), n_used_.end());
    cache_.emplace(shape, cache_bytes, most_used, options.cache);
    if (!cache_->pools().note.empty()) {
        if (options.strict) fail(Code::budget, cache_->pools().note);
        log_message(LogLevel::warning, cache_->pools().note);
    }
    predictor_.emplace(static_cast<int>(layers.size()), options.predict);
    if (options.choose_policy) chooser_.emplace(shape, cache_bytes, options.cache, most_used);
    size_t experts = 0;
    for (const StreamLayer& layer : layers) {
        first_expert_.push_back(experts);
        experts += static_cast<size_t>(layer.n_expert);
    }
    uses_.assign(experts, 0.0);
    reset();
}

bool StreamBooks::holds_all() const {
    const cache::Shape& shape = cache_->shape();
    int64_t n_granule = 0, n_slot = 0;
    for (const auto& layer : shape) n_granule += int64_t{layer.n_expert} * layer.n_granule;
    for (const cache::Pool& pool : cache_->pools().pools) n_slot += pool.n_slot;
    return n_slot >= n_granule;
}

void StreamBooks::begin_tokens(int64_t n, double miss_bytes_s) {
    clock_ += n;
    if (!chooser_) return;
    if (const auto better = chooser_->poll(cache_->policy(), miss_bytes_s)) {
        cache_->change_policy(*better, chooser_->recent(), clock_);
        ++n_policy_changes_;
    }
}

std::span<const cache::Routed> StreamBooks::route(int layer, std::span<const int32_t> ids, bool is_decode, bool bypass) {
    if (is_decode && chooser_) chooser_->remember(layer, ids);
    for (const int32_t id : ids) uses_[first_expert_[static_cast<size_t>(layer)] + static_cast<size_t>(id)] += 1.0;
    return cache_->route(clock_, layer, ids, n_used_[static_cast<size_t>(layer)], bypass);
}

std::span<const int32_t> StreamBooks::account(int layer, std::span<const int32_t> ids, const StreamTally& tally, bool is_decode,
                                              double window_s, double miss_bytes_s) {
    const auto guess = predictor_->guess(layer);
    guessed_ids_.assign(guess.begin(), guess.end());
    (is_decode ? decode_ : prefill_)[static_cast<size_t>(layer)].add(tally);
    if (!is_decode) return guessed_ids_;
    // Prefetching gains what arrived inside the window, in which the lane had nothing else to do, and costs what ran over it in vain.
    predict::Outcome outcome{.useful_bytes = tally.useful_bytes, .wasted_bytes = tally.wasted_bytes, .late_bytes = tally.late_bytes};
    if (miss_bytes_s > 0.0) {
        const double useful_s = static_cast<double>(tally.useful_bytes) / miss_bytes_s;
        const double wasted_s = static_cast<double>(tally.wasted_bytes) / miss_bytes_s;
        outcome.saved_s = std::min(useful_s, window_s);
        outcome.lost_s = std::min(wasted_s, std::max(0.0, useful_s + wasted_s - window_s));
    }
    predictor_->observe(layer, ids, outcome);
    return guessed_ids_;
}

void StreamBooks::add_stall(int layer, bool is_decode, double seconds) {
    (is_decode ? decode_ : prefill_)[static_cast<size_t>(layer)].stall_s += seconds;
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
}

void StreamBooks::reset() {
    decode_.assign(n_used_.size(), {});
    prefill_.assign(n_used_.size(), {});
}

}  // namespace moepic
