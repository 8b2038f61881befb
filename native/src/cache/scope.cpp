#include "cache/scope.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "base/error.h"

namespace moepic::cache {
namespace {

int64_t total_bytes(const Shape& shape) {
    int64_t bytes = 0;
    for (const LayerShape& layer : shape) bytes += layer.bytes();
    return bytes;
}

// bytes x part / whole without overflow.
int64_t share(int64_t bytes, int64_t part, int64_t whole) {
    return static_cast<int64_t>(static_cast<long double>(bytes) * part / whole);
}

Pool layer_pool(const LayerShape& layer, int64_t budget_bytes, int step, int top) {
    const int64_t most = int64_t{layer.n_expert} * top;
    return {layer.granule_bytes, static_cast<int>(std::min(budget_bytes / (step * layer.granule_bytes) * step, most))};
}

Pools divide_per_layer(const Shape& shape, int64_t budget_bytes, const Cut& cut) {
    const int64_t whole = total_bytes(shape);
    std::vector<int64_t> given(shape.size());
    std::vector<int64_t> lost(shape.size());
    int64_t left = budget_bytes;
    for (size_t il = 0; il < shape.size(); ++il) {
        const int64_t part = std::min(share(budget_bytes, shape[il].bytes(), whole), shape[il].bytes());
        const Pool pool = layer_pool(shape[il], part, cut.step(il), cut.top[il]);
        given[il] = pool.n_slot * pool.slot_bytes;
        lost[il] = part - given[il];
        left -= given[il];
    }
    std::vector<size_t> order(shape.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return lost[a] > lost[b]; });
    for (const size_t il : order) {
        const int64_t step = cut.step(il) * shape[il].granule_bytes;
        const int64_t most = int64_t{shape[il].n_expert} * cut.top[il] * shape[il].granule_bytes;
        if (step <= left && given[il] + step <= most) given[il] += step, left -= step;
    }
    return divide(shape, given, cut);
}

}  // namespace

Pools divide(const Shape& shape, const std::vector<int64_t>& budget_bytes, const Cut& cut) {
    validate(shape);
    if (budget_bytes.size() != shape.size() || cut.top.size() != shape.size()) {
        fail(Code::argument, "cache: ", budget_bytes.size(), " budgets and ", cut.top.size(), " cuts for ", shape.size(), " MoE layers");
    }
    Pools made;
    for (size_t il = 0; il < shape.size(); ++il) {
        if (budget_bytes[il] < 0)
            fail(Code::budget, "cache: the budget of MoE layer ", il, " is ", budget_bytes[il], " bytes, expected >= 0");
        if (cut.top[il] < 1 || cut.top[il] > shape[il].n_granule) {
            fail(Code::argument, "cache: the top of MoE layer ", il, " is ", cut.top[il], " granules, expected 1 to ", shape[il].n_granule);
        }
        made.pools.push_back(layer_pool(shape[il], budget_bytes[il], cut.step(il), cut.top[il]));
        made.pool_of.push_back(static_cast<int>(il));
    }
    return made;
}

Pools divide(const Shape& shape, int64_t budget_bytes, Scope asked, int n_used, const Cut& cut) {
    validate(shape);
    if (budget_bytes < 0) fail(Code::budget, "cache: the budget is ", budget_bytes, " bytes, expected >= 0");
    divide(shape, std::vector<int64_t>(shape.size(), 0), cut);  // checks the cuts
    if (asked == Scope::per_layer) return divide_per_layer(shape, budget_bytes, cut);

    std::map<int64_t, std::pair<int64_t, int64_t>> sizes;  // granule bytes -> bytes of all its layers, one token's demand
    for (size_t il = 0; il < shape.size(); ++il) {
        sizes[shape[il].granule_bytes].first += shape[il].bytes();
        sizes[shape[il].granule_bytes].second += std::min(n_used, shape[il].n_expert) * cut.top[il] * shape[il].granule_bytes;
    }
    Pools made;
    made.scope = Scope::global;
    std::map<int64_t, int> pool_of_size;
    for (const auto& [granule_bytes, size] : sizes) {
        const auto [bytes, demand] = size;
        const int64_t given = std::min(share(budget_bytes, bytes, total_bytes(shape)), bytes);
        if (given < demand) {
            Pools safe = divide_per_layer(shape, budget_bytes, cut);
            safe.note =
                cat("global pool of ", human_bytes(static_cast<unsigned long long>(given)), " is below one token's demand of ",
                    human_bytes(static_cast<unsigned long long>(demand)), ": it would never hit, so every layer has a pool of its own");
            return safe;
        }
        pool_of_size[granule_bytes] = static_cast<int>(made.pools.size());
        made.pools.push_back({granule_bytes, static_cast<int>(std::min<int64_t>(given / granule_bytes, std::numeric_limits<int>::max()))});
    }
    for (const LayerShape& layer : shape) made.pool_of.push_back(pool_of_size[layer.granule_bytes]);
    return made;
}

}  // namespace moepic::cache
