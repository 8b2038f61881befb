#include "engine/policy_chooser.h"

#include <algorithm>

namespace moepic {
namespace {

constexpr int kMostTokens = 384;  // remembered; older ones go in blocks
constexpr int kNewTokens = 96;    // until the next replay
constexpr int kWarmTokens = 32;   // of a replay, not counted

// The policies of cache/policy.h with the constants that recorded traces prefer (routing-and-split.md, section 3).
std::vector<cache::PolicyOptions> candidates() {
    using cache::PolicyKind;
    return {
        {.kind = PolicyKind::lrfu, .half_life = 24.0},
        {.kind = PolicyKind::lrfu, .half_life = 6.0},
        {.kind = PolicyKind::lrfu, .half_life = 96.0},
        {.kind = PolicyKind::lru},
        {.kind = PolicyKind::lfu},
        {.kind = PolicyKind::lcp},
    };
}

bool is_same(const cache::PolicyOptions& a, const cache::PolicyOptions& b) {
    return a.kind == b.kind && (a.kind != cache::PolicyKind::lrfu || a.half_life == b.half_life);
}

}  // namespace

PolicyChooser::PolicyChooser(const cache::Shape& shape, int64_t budget_bytes, const cache::CacheOptions& base, int n_used)
    : shape_(shape), budget_bytes_(budget_bytes), base_(base), n_used_(n_used) {
    ids_.reserve(static_cast<size_t>(kMostTokens) * shape_.size() * static_cast<size_t>(n_used_));
}

PolicyChooser::~PolicyChooser() {
    if (worker_.joinable()) worker_.join();
}

void PolicyChooser::remember(int layer, std::span<const int32_t> ids) {
    const size_t token = shape_.size() * static_cast<size_t>(n_used_);
    if (layer == 0) {
        if (ids_.size() == token * kMostTokens)
            ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(token * (kMostTokens / 4)));
        ids_.insert(ids_.end(), token, -1);
        ++new_tokens_;
    }
    if (ids_.empty()) return;
    std::copy(ids.begin(), ids.end(), ids_.end() - static_cast<std::ptrdiff_t>(token) + layer * n_used_);
}

cache::Routing PolicyChooser::recent() const {
    return {static_cast<int>(ids_.size() / (shape_.size() * static_cast<size_t>(n_used_))), static_cast<int>(shape_.size()), n_used_, ids_};
}

void PolicyChooser::scale_budget(double factor) {
    if (worker_.joinable()) {  // its choice is for the cache there was
        worker_.join();
        is_ready_.store(false, std::memory_order_relaxed);
    }
    budget_bytes_ = static_cast<int64_t>(factor * static_cast<double>(budget_bytes_));
    for (int64_t& bytes : base_.budget) bytes = static_cast<int64_t>(factor * static_cast<double>(bytes));
}

std::optional<cache::PolicyOptions> PolicyChooser::poll(const cache::PolicyOptions& current, double miss_bytes_s) {
    if (is_ready_.load(std::memory_order_acquire)) {
        worker_.join();
        is_ready_.store(false, std::memory_order_relaxed);
        return choice_ && !is_same(*choice_, current) ? choice_ : std::nullopt;
    }
    if (!worker_.joinable() && new_tokens_ >= kNewTokens) {
        new_tokens_ = 0;
        worker_ = std::thread([this, ids = ids_, current, miss_bytes_s]() mutable { choose(std::move(ids), current, miss_bytes_s); });
    }
    return std::nullopt;
}

void PolicyChooser::choose(std::vector<int32_t> ids, cache::PolicyOptions current, double miss_bytes_s) {
    const cache::Routing routing{static_cast<int>(ids.size() / (shape_.size() * static_cast<size_t>(n_used_))),
                                 static_cast<int>(shape_.size()), n_used_, ids};
    std::vector<cache::PolicyOptions> policies = candidates();
    std::erase_if(policies, [&](const cache::PolicyOptions& policy) { return is_same(policy, current); });
    policies.insert(policies.begin(), current);
    std::vector<cache::CacheOptions> caches;
    for (const cache::PolicyOptions& policy : policies) {
        caches.push_back(base_);
        caches.back().policy = policy;
    }
    std::vector<double> stall_s(caches.size());
    const cache::Lanes lanes{.miss_bytes_s = miss_bytes_s > 0.0 ? miss_bytes_s : 1e9};
    try {
        choice_ = caches[cache::choose(routing, shape_, budget_bytes_, caches, lanes, kWarmTokens, stall_s)].policy;
    } catch (...) {  // out of memory, at worst: the policy in force stays
        choice_.reset();
    }
    is_ready_.store(true, std::memory_order_release);
}

}  // namespace moepic
