// What the pure rooms know of a model: how many experts a layer has and how many granules of how many bytes an expert is. No weights.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moepic::cache {

struct LayerShape {
    int n_expert = 0;
    int n_granule = 0;          // granules of one expert
    int64_t granule_bytes = 0;  // gate, up and down of one granule

    int64_t expert_bytes() const { return n_granule * granule_bytes; }
    int64_t bytes() const { return n_expert * expert_bytes(); }
};

// The MoE layers in order; `layer` everywhere in this room counts these, not the dense ones between them.
using Shape = std::vector<LayerShape>;

// Consecutive granules [first, first + count) of one expert.
struct Run {
    int first = 0;
    int count = 0;
    bool operator==(const Run&) const = default;
};

// Recorded routing. ids [n_token, n_layer, n_used], -1 where a token used fewer experts.
struct Routing {
    int n_token = 0;
    int n_layer = 0;
    int n_used = 0;
    std::span<const int32_t> ids;

    std::span<const int32_t> at(int token, int layer) const {
        return ids.subspan((static_cast<size_t>(token) * n_layer + layer) * n_used, n_used);
    }
};

// Throws Error(argument) naming the first layer, or token and layer, that makes no sense.
void validate(const Shape& shape);
void validate(const Routing& routing, const Shape& shape);

}  // namespace moepic::cache
