// Who is worth keeping: a number per expert. Counts and token numbers in, ranks out; knows no slots, budgets or bytes.
//
// Every policy here is written as the logarithm of a worth, leaving out the term that all experts share at one moment. So a rank changes
// only when its own expert is used, never because time passes, and an ordered set can hold the residents:
//   lru     last
//   lfu     log2(mu)
//   lcp     log2(mu) + last log2(1/rho) / omega          MoEpic, arXiv 2509.08342: P = mu rho^(nu / omega), evict the smallest
//   lrfu    log2(s) + last / half_life                   s = 1 + s 2^(-(now - last) / half_life) at each use: decayed frequency
//   fixed   log2(weight in the profile)                  never learns ("static")
//   belady  -(next use)                                  needs the future: replay only
// with mu the uses so far, last the token of the last use, nu = now - last.
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "cache/shape.h"

namespace moepic::cache {

enum class PolicyKind : int { lru = 0, lfu = 1, lcp = 2, lrfu = 3, fixed = 4, belady = 5 };

struct PolicyOptions {
    PolicyKind kind = PolicyKind::lrfu;
    double rho = 0.25;        // lcp, in (0, 1)
    double omega = 128.0;     // lcp, tokens
    double half_life = 24.0;  // lrfu, tokens
};

void validate(const PolicyOptions& options);
std::string_view name(PolicyKind kind);

// Ordered by worth, then by age: of two experts of equal worth the one used longer ago goes first.
struct Rank {
    double worth = 0.0;
    int64_t last = -1;
    auto operator<=>(const Rank&) const = default;
};

class Policy {
public:
    Policy(const Shape& shape, const PolicyOptions& options);

    // Starts from earlier use: weight [all experts of all layers, in order], >= 0, in uses. fixed needs it, belady ignores it.
    void seed(std::span<const double> weight);
    // The future, for belady: a token's number is its index in `routing`.
    void foresee(const Routing& routing);

    // The expert is used by token number `now`; numbers never decrease.
    void use(int layer, int expert, int64_t now);
    Rank rank(int layer, int expert) const;

    // What granule j of G adds to its expert's rank. A resident granule is worth f (1 + omega (1 - j/G)): bottoms go first, so a hot expert
    // stays whole, a warm one keeps its top. Policies that do not count uses let omega break ties only.
    double bonus(int granule, int n_granule, double omega) const;

private:
    struct Expert {
        double uses = 0.0;  // mu, or the decayed count s at `last`
        int64_t last = -1;
        size_t next = 0;            // belady: position in `future`
        std::vector<int> future{};  // belady: tokens that use it, ascending
    };
    size_t index(int layer, int expert) const { return first_[layer] + static_cast<size_t>(expert); }

    PolicyOptions options_;
    std::vector<size_t> first_;
    std::vector<Expert> experts_;
};

}  // namespace moepic::cache
