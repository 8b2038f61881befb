#include "plan/samples.h"

#include <algorithm>
#include <cmath>

#include "plan/cost.h"

namespace moepic::plan {
namespace {

constexpr double kHalfLife = 24.0;
constexpr double kOmega = 1.0;

}  // namespace

Samples::Samples(const Problem& problem) {
    size_t n = 0;
    for (const Layer& layer : problem.layers) {
        first_.push_back(n);
        n += layer.n_expert;
    }
    tokens_.resize(n);
    frequency_.resize(n);
    for (size_t i = 0; i < problem.routing.size(); ++i) {
        if (problem.routing[i] < 0) continue;
        const size_t row = i / problem.n_used, expert = first_[row % problem.layers.size()] + problem.routing[i];
        const int token = static_cast<int>(row / problem.layers.size());
        tokens_[expert].push_back(token);
        frequency_[expert] += std::exp2((token + 1 - problem.n_token) / kHalfLife);
    }
}

double Samples::worth(size_t expert, int granule, int n_granule) const {
    return frequency_[expert] * (1.0 + kOmega * (1.0 - static_cast<double>(granule) / n_granule));
}

std::vector<double> Samples::misses(const Problem& problem, size_t layer) const {
    std::vector<double> bytes(problem.n_token, 0.0);
    for (size_t e = first_[layer]; e < first_[layer] + problem.layers[layer].n_expert; ++e) {
        for (const int token : tokens_[e]) bytes[token] += static_cast<double>(problem.layers[layer].expert_bytes());
    }
    return bytes;
}

LayerTime::LayerTime(const Problem& problem, size_t layer, bool with_cpu)
    : floor_s(plan::floor_s(problem, problem.layers[layer], with_cpu)),
      hidden_bytes(problem.layers[layer].recall * problem.layers[layer].window_s * problem.machine.link),
      rate(miss_rate(problem.machine, with_cpu)),
      sync_s(with_cpu ? problem.machine.cpu_sync_s : 0.0) {}

double LayerTime::of(double miss_bytes) const {
    return std::max(floor_s, (miss_bytes - hidden_bytes) / rate) + (miss_bytes > hidden_bytes ? sync_s : 0.0);
}

double LayerTime::of(double miss_bytes, double soft_s) const {
    const double above = (miss_bytes - hidden_bytes) / rate - floor_s;
    if (std::abs(above) >= soft_s) return floor_s + std::max(0.0, above);
    return floor_s + (above + soft_s) * (above + soft_s) / (4.0 * soft_s);
}

}  // namespace moepic::plan
