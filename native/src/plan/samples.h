// What recorded tokens say: which of them use which expert, and what a layer costs a token that misses so many bytes there.
#pragma once

#include <vector>

#include "plan/problem.h"

namespace moepic::plan {

// Experts of all layers are numbered one after another.
class Samples {
public:
    explicit Samples(const Problem& problem);

    size_t n_expert() const { return tokens_.size(); }
    size_t first(size_t layer) const { return first_[layer]; }
    const std::vector<int>& tokens(size_t expert) const { return tokens_[expert]; }
    // Uses, decayed with a half-life of 24 tokens: routing of text drifts this fast (simulation.md, section 7).
    double frequency(size_t expert) const { return frequency_[expert]; }

    // What granule j of G is worth to tokens to come: f (1 + omega (1 - j/G)), omega = 1.
    double worth(size_t expert, int granule, int n_granule) const;

    // Bytes each token misses in a layer when nothing is resident.
    std::vector<double> misses(const Problem& problem, size_t layer) const;

private:
    std::vector<size_t> first_;
    std::vector<std::vector<int>> tokens_;
    std::vector<double> frequency_;
};

// A layer's part of the objective for one token.
struct LayerTime {
    double floor_s = 0.0;
    double hidden_bytes = 0.0;  // F
    double rate = 0.0;          // R
    double sync_s = 0.0;        // paid by a token that misses more than is hidden: the CPU lane's round trip

    LayerTime(const Problem& problem, size_t layer, bool with_cpu);
    double of(double miss_bytes) const;
    // The same with its corner rounded over some `soft_s`: it says how near a token is to the corner, where of() says only on which side.
    double of(double miss_bytes, double soft_s) const;
};

}  // namespace moepic::plan
