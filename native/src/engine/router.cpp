#include "engine/router.h"

#include <algorithm>
#include <cmath>

namespace moepic {
namespace {

// What choices go by: NaN loses against every number.
float or_lowest(float v) noexcept {
    return v == v ? v : -INFINITY;
}

// Bits of the groups whose two best keys sum highest (DeepSeek-V3, section 2.1.2), or whose best key is highest (DeepSeek-V2, section
// 2.1.2); of equals the lower group wins.
template <class Key>
uint64_t best_groups(int64_t n_expert, int64_t n_group, int64_t n_used, bool by_best, Key key) noexcept {
    const int64_t size = n_expert / n_group;
    float sums[64];
    for (int64_t g = 0; g < n_group; ++g) {
        float first = -INFINITY, second = -INFINITY;
        for (int64_t e = g * size; e < (g + 1) * size; ++e) {
            const float v = key(e);
            if (v > first) {
                second = first;
                first = v;
            } else if (v > second) {
                second = v;
            }
        }
        sums[g] = size > 1 && !by_best ? first + second : first;
    }
    uint64_t chosen = 0;
    for (int64_t i = 0; i < n_used; ++i) {
        int64_t best = -1;
        for (int64_t g = 0; g < n_group; ++g) {
            if (!(chosen >> g & 1) && (best < 0 || sums[g] > sums[best])) best = g;
        }
        chosen |= uint64_t{1} << best;
    }
    return chosen;
}

void sort_by_id(int32_t* ids, float* weights, int64_t k) noexcept {
    for (int64_t j = 1; j < k; ++j) {
        const int32_t id = ids[j];
        const float w = weights[j];
        int64_t at = j;
        for (; at > 0 && ids[at - 1] > id; --at) {
            ids[at] = ids[at - 1];
            weights[at] = weights[at - 1];
        }
        ids[at] = id;
        weights[at] = w;
    }
}

// SparseMixer's inference (Liu et al. 2024): the best logit of those not yet taken, weighted by its softmax among those that lie within
// 2 jitter of it, relative to the larger of their sizes. The second choice leaves the first out of the softmax. Jitter is the 0.01 the
// models were trained with; GGUF has no key for it.
void mix_sparsely(const float* logits, int64_t n, const ops::Kernels& kernels, int32_t* ids, float* weights) noexcept {
    constexpr float kTwoJitters = 0.02f;
    float near[kMostSparseExperts];
    for (int64_t j = 0; j < 2; ++j) {
        int64_t best = -1;
        for (int64_t e = 0; e < n; ++e) {
            if ((j == 0 || e != ids[0]) && (best < 0 || or_lowest(logits[e]) > or_lowest(logits[best]))) best = e;
        }
        const float top = logits[best];
        for (int64_t e = 0; e < n; ++e) {
            const bool far = (top - logits[e]) / std::max(std::abs(logits[e]), top) > kTwoJitters;
            near[e] = far || (j == 1 && e == ids[0]) ? -INFINITY : logits[e];
        }
        kernels.softmax(near, n);
        ids[j] = static_cast<int32_t>(best);
        weights[j] = near[best];
    }
}

}  // namespace

void route_token(const Config& config, const LayerConfig& layer, const ops::Kernels& kernels, const float* selection_bias, float* logits,
                 int32_t* ids, float* weights) noexcept {
    const int64_t n = layer.n_expert, k = layer.n_expert_used;
    if (config.scoring == Scoring::sparse_mixer) {
        mix_sparsely(logits, n, kernels, ids, weights);
        return sort_by_id(ids, weights, k);
    }
    if (config.scoring == Scoring::softmax) kernels.softmax(logits, n);
    if (config.scoring == Scoring::sigmoid) kernels.sigmoid(logits, n);
    // The choice goes by keys, the weights by scores: a selection bias balances load and must not colour the output.
    const auto key = [&](int64_t e) { return or_lowest(selection_bias ? logits[e] + selection_bias[e] : logits[e]); };
    const int64_t group_size = n / config.n_group;
    const uint64_t groups = config.n_group_used < config.n_group
                                ? best_groups(n, config.n_group, config.n_group_used, config.groups_by_best, key)
                                : ~uint64_t{0};
    // Insertion into a sorted list of k: k is at most a few dozen and most candidates fail the first comparison.
    int64_t held = 0;
    for (int64_t e = 0; e < n; ++e) {
        if (!(groups >> (e / group_size) & 1)) continue;
        const float p = key(e);
        if (held == k && !(p > weights[k - 1])) continue;
        int64_t at = held < k ? held++ : k - 1;
        for (; at > 0 && p > weights[at - 1]; --at) {
            weights[at] = weights[at - 1];
            ids[at] = ids[at - 1];
        }
        weights[at] = p;
        ids[at] = static_cast<int32_t>(e);
    }
    for (int64_t j = 0; j < k; ++j) weights[j] = logits[ids[j]];
    if (config.scoring == Scoring::softmax_selected) kernels.softmax(weights, k);
    float sum = 0.0f;
    for (int64_t j = 0; j < k; ++j) sum += weights[j];
    // The floor is the smallest normal half, as other engines have it: weights that vanish must not become infinite.
    const float factor = (config.renormalise ? 1.0f / std::max(sum, 6.103515625e-5f) : 1.0f) * config.router_scale;
    for (int64_t j = 0; j < k; ++j) weights[j] *= factor;
    sort_by_id(ids, weights, k);
}

}  // namespace moepic
