#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace moepic {
namespace {

void check_range(const char* name, double value, double low, double high) {
    if (!(value >= low && value <= high)) fail(Code::argument, "sampler: ", name, " is ", value, ", expected ", low, " to ", high);
}

}  // namespace

Sampler::Sampler(SamplerOptions options) : options_(std::move(options)), state_(options_.seed) {
    check_range("temperature", options_.temperature, 0.0, 100.0);
    check_range("top_k", options_.top_k, 0, INT32_MAX);
    check_range("top_p", options_.top_p, 0.0, 1.0);
    check_range("min_p", options_.min_p, 0.0, 1.0);
    check_range("typical_p", options_.typical_p, 0.0, 1.0);
    check_range("repeat_penalty", options_.repeat_penalty, 1e-3, 1e3);
    check_range("presence_penalty", options_.presence_penalty, -100.0, 100.0);
    check_range("frequency_penalty", options_.frequency_penalty, -100.0, 100.0);
    check_range("penalty_last_n", options_.penalty_last_n, -1, INT32_MAX);
    for (const auto& [id, value] : options_.bias) {
        if (std::isnan(value)) fail(Code::argument, "sampler: logit bias of token ", id, " is not a number");
    }
}

int32_t Sampler::sample(std::span<const float> logits) {
    if (options_.temperature == 0.0f && options_.bias.empty() && !has_penalties()) {
        // Plain greedy needs no list of candidates. The comparison is false for NaN, and takes the first of equals.
        float most = -INFINITY;
        int32_t best = -1;
        for (size_t i = 0; i < logits.size(); ++i) {
            if (logits[i] > most) {
                most = logits[i];
                best = static_cast<int32_t>(i);
            }
        }
        if (best >= 0) return best;
    }
    candidates_.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) candidates_[i] = {logits[i], static_cast<int32_t>(i), 0.0f};
    for (const auto& [id, value] : options_.bias) {
        if (id < 0 || static_cast<size_t>(id) >= candidates_.size()) {
            fail(Code::argument, "sampler: logit bias names token ", id, ", the vocabulary has ids 0 to ",
                 static_cast<int64_t>(candidates_.size()) - 1);
        }
        candidates_[static_cast<size_t>(id)].logit += value;
    }
    apply_penalties();
    std::erase_if(candidates_, [](const Candidate& c) { return std::isnan(c.logit) || c.logit == -INFINITY; });
    if (candidates_.empty())
        fail(Code::argument, "sampler: every token is forbidden or not a number (logit bias too strict, or a broken model?)");
    const auto better = [](const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; };
    if (options_.temperature == 0.0f) return std::min_element(candidates_.begin(), candidates_.end(), better)->id;

    keep_top_k();
    keep_typical();
    keep_top_p();
    keep_min_p();
    fill_probabilities(options_.temperature);
    const double draw = uniform();
    double sum = 0.0;
    for (const Candidate& c : candidates_) {
        sum += static_cast<double>(c.p);
        if (draw < sum) return c.id;
    }
    return candidates_.back().id;  // rounding left the sum a hair below one
}

void Sampler::accept(std::span<const int32_t> tokens) {
    history_.insert(history_.end(), tokens.begin(), tokens.end());
}

void Sampler::reset() noexcept {
    history_.clear();
    state_ = options_.seed;
}

bool Sampler::has_penalties() const noexcept {
    const bool none = options_.repeat_penalty == 1.0f && options_.presence_penalty == 0.0f && options_.frequency_penalty == 0.0f;
    return !none && options_.penalty_last_n != 0;
}

void Sampler::apply_penalties() {
    if (!has_penalties()) return;
    const size_t back =
        options_.penalty_last_n < 0 ? history_.size() : std::min(history_.size(), static_cast<size_t>(options_.penalty_last_n));
    std::unordered_map<int32_t, int> counts;
    for (size_t i = history_.size() - back; i < history_.size(); ++i) ++counts[history_[i]];
    for (const auto& [id, count] : counts) {
        if (id < 0 || static_cast<size_t>(id) >= candidates_.size()) continue;
        float& logit = candidates_[static_cast<size_t>(id)].logit;
        logit = logit > 0.0f ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
        logit -= options_.presence_penalty + options_.frequency_penalty * static_cast<float>(count);
    }
}

// Each filter below leaves the candidates sorted by falling logit, ties by id.
void Sampler::keep_top_k() {
    const auto better = [](const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; };
    const size_t k = options_.top_k > 0 ? std::min(candidates_.size(), static_cast<size_t>(options_.top_k)) : candidates_.size();
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(k), candidates_.end(), better);
    candidates_.resize(k);
}

void Sampler::fill_probabilities(float temperature) {
    const double top = candidates_.front().logit;
    double sum = 0.0;
    for (const Candidate& c : candidates_) sum += top == INFINITY ? (c.logit == INFINITY) : std::exp((c.logit - top) / temperature);
    for (Candidate& c : candidates_) {
        const double e = top == INFINITY ? (c.logit == INFINITY) : std::exp((c.logit - top) / temperature);
        c.p = static_cast<float>(e / sum);
    }
}

void Sampler::keep_typical() {
    if (options_.typical_p >= 1.0f) return;
    fill_probabilities(1.0f);
    double entropy = 0.0;
    for (const Candidate& c : candidates_) entropy -= c.p > 0.0f ? c.p * std::log(static_cast<double>(c.p)) : 0.0;
    // Keep the tokens whose surprise is nearest to the entropy until they hold typical_p of the mass.
    std::vector<std::pair<double, size_t>> order(candidates_.size());
    for (size_t i = 0; i < order.size(); ++i)
        order[i] = {std::fabs(-std::log(std::max(1e-30, static_cast<double>(candidates_[i].p))) - entropy), i};
    std::sort(order.begin(), order.end());
    std::vector<size_t> kept;
    double mass = 0.0;
    for (const auto& [distance, i] : order) {
        kept.push_back(i);
        mass += candidates_[i].p;
        if (mass >= options_.typical_p) break;
    }
    std::sort(kept.begin(), kept.end());
    for (size_t i = 0; i < kept.size(); ++i) candidates_[i] = candidates_[kept[i]];
    candidates_.resize(kept.size());
}

void Sampler::keep_top_p() {
    if (options_.top_p >= 1.0f) return;
    fill_probabilities(1.0f);
    double mass = 0.0;
    size_t kept = 0;
    while (kept < candidates_.size()) {
        mass += candidates_[kept++].p;
        if (mass >= options_.top_p) break;  // the one that crosses stays: never empty
    }
    candidates_.resize(kept);
}

void Sampler::keep_min_p() {
    if (options_.min_p <= 0.0f) return;
    fill_probabilities(1.0f);
    const float least = options_.min_p * candidates_.front().p;
    std::erase_if(candidates_, [&](const Candidate& c) { return c.p < least; });
}

double Sampler::uniform() noexcept {
    state_ += 0x9e3779b97f4a7c15u;  // SplitMix64, Steele et al. 2014
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1.0p-53;
}

void log_probabilities(std::span<const float> logits, int32_t token, std::span<int32_t> top_ids, std::span<float> top_values,
                       float& of_token) {
    const double top = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (float logit : logits) sum += std::exp(logit - top);
    const double norm = top + std::log(sum);
    of_token = static_cast<float>(logits[static_cast<size_t>(token)] - norm);
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    const auto better = [&](int32_t a, int32_t b) {
        const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
        return x != y ? x > y : a < b;
    };
    const size_t n = std::min(top_ids.size(), order.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n), order.end(), better);
    for (size_t i = 0; i < n; ++i) {
        top_ids[i] = order[i];
        top_values[i] = static_cast<float>(logits[static_cast<size_t>(order[i])] - norm);
    }
}

}  // namespace moepic
