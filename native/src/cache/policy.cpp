#include "cache/policy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace moepic::cache {

void validate(const PolicyOptions& options) {
    const int kind = static_cast<int>(options.kind);
    if (kind < 0 || kind > static_cast<int>(PolicyKind::belady)) fail(Code::argument, "policy: ", kind, " is no policy");
    if (!(options.rho > 0.0 && options.rho < 1.0)) fail(Code::argument, "policy lcp: rho is ", options.rho, ", expected between 0 and 1");
    if (!(options.omega > 0.0) || !std::isfinite(options.omega))
        fail(Code::argument, "policy lcp: omega is ", options.omega, " tokens, expected > 0");
    if (!(options.half_life > 0.0) || !std::isfinite(options.half_life)) {
        fail(Code::argument, "policy lrfu: the half-life is ", options.half_life, " tokens, expected > 0");
    }
}

std::string_view name(PolicyKind kind) {
    switch (kind) {
        case PolicyKind::lru:
            return "lru";
        case PolicyKind::lfu:
            return "lfu";
        case PolicyKind::lcp:
            return "lcp";
        case PolicyKind::lrfu:
            return "lrfu";
        case PolicyKind::fixed:
            return "static";
        case PolicyKind::belady:
            return "belady";
    }
    return "?";
}

Policy::Policy(const Shape& shape, const PolicyOptions& options) : options_(options) {
    validate(options_);
    size_t count = 0;
    for (const LayerShape& layer : shape) {
        first_.push_back(count);
        count += layer.n_expert;
    }
    experts_.resize(count);
}

void Policy::seed(std::span<const double> weight) {
    if (weight.size() != experts_.size()) fail(Code::argument, "profile: ", weight.size(), " weights for ", experts_.size(), " experts");
    for (size_t i = 0; i < weight.size(); ++i) {
        if (!(weight[i] >= 0.0) || !std::isfinite(weight[i]))
            fail(Code::argument, "profile: expert ", i, " has weight ", weight[i], ", expected >= 0");
        experts_[i].uses = weight[i];
    }
}

void Policy::foresee(const Routing& routing) {
    for (Expert& expert : experts_) expert.future.clear(), expert.next = 0;
    for (int token = 0; token < routing.n_token; ++token) {
        for (int il = 0; il < routing.n_layer; ++il) {
            for (const int32_t id : routing.at(token, il)) {
                if (id >= 0) experts_[index(il, id)].future.push_back(token);
            }
        }
    }
}

void Policy::use(int layer, int expert, int64_t now) {
    Expert& e = experts_[index(layer, expert)];
    if (options_.kind == PolicyKind::lrfu) {
        // A seeded expert was never used here; its weight counts as of token 0.
        const double age = static_cast<double>(now - std::max<int64_t>(e.last, 0));
        e.uses = 1.0 + e.uses * std::exp2(-age / options_.half_life);
    } else if (options_.kind != PolicyKind::fixed) {
        e.uses += 1.0;
    }
    e.last = now;
    while (e.next < e.future.size() && e.future[e.next] <= now) ++e.next;
}

Rank Policy::rank(int layer, int expert) const {
    const Expert& e = experts_[index(layer, expert)];
    const double last = static_cast<double>(std::max<int64_t>(e.last, 0));
    const double frequency = std::log2(e.uses);  // -inf for one never used: anything used is worth more
    switch (options_.kind) {
        case PolicyKind::lru:
            return {static_cast<double>(e.last), e.last};
        case PolicyKind::lfu:
            return {frequency, e.last};
        case PolicyKind::lcp:
            return {frequency + last * -std::log2(options_.rho) / options_.omega, e.last};
        case PolicyKind::lrfu:
            return {frequency + last / options_.half_life, e.last};
        case PolicyKind::fixed:
            return {frequency, 0};
        case PolicyKind::belady:
            return {e.next < e.future.size() ? -static_cast<double>(e.future[e.next]) : -std::numeric_limits<double>::infinity(), 0};
    }
    return {};
}

double Policy::bonus(int granule, int n_granule, double omega) const {
    const double share = 1.0 - static_cast<double>(granule) / n_granule;
    const bool counts = options_.kind != PolicyKind::lru && options_.kind != PolicyKind::belady;
    // Without a frequency a rank is a token number; less than one token breaks ties between experts of one token only.
    return counts ? std::log2(1.0 + omega * share) : 0.5 * share * omega / (1.0 + omega);
}

}  // namespace moepic::cache
