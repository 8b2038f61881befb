#include "engine/router.h"

#include <algorithm>

namespace moepic {

void route_token(const Config& config, const LayerConfig& layer, const ops::Kernels& kernels, float* logits, int32_t* ids,
                 float* weights) noexcept {
    const int64_t n = layer.n_expert, k = layer.n_expert_used;
    if (config.scoring == Scoring::softmax) kernels.softmax(logits, n);
    if (config.scoring == Scoring::sigmoid) kernels.sigmoid(logits, n);
    // Insertion into a sorted list of k: k is at most a few dozen and most candidates fail the first comparison.
    int64_t held = 0;
    for (int64_t e = 0; e < n; ++e) {
        const float p = logits[e];
        if (held == k && !(p > weights[k - 1])) continue;
        int64_t at = held < k ? held++ : k - 1;
        for (; at > 0 && p > weights[at - 1]; --at) {
            weights[at] = weights[at - 1];
            ids[at] = ids[at - 1];
        }
        weights[at] = p;
        ids[at] = static_cast<int32_t>(e);
    }
    if (config.scoring == Scoring::softmax_selected) kernels.softmax(weights, k);
    float sum = 0.0f;
    for (int64_t j = 0; j < k; ++j) sum += weights[j];
    // The floor is the smallest normal half, as other engines have it: weights that vanish must not become infinite.
    const float factor = (config.renormalise ? 1.0f / std::max(sum, 6.103515625e-5f) : 1.0f) * config.router_scale;
    for (int64_t j = 0; j < k; ++j) weights[j] *= factor;
    for (int64_t j = 1; j < k; ++j) {  // by id
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

}  // namespace moepic
