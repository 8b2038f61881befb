// A norm of the model's width: LayerNorm where it has a bias, else RMS; times a factor.
#pragma once

#include <cmath>
#include <cstdint>

#include "engine/model.h"
#include "ops/ops.h"

namespace moepic {

struct Norm {
    const float* weight;
    const float* bias = nullptr;
    float factor = 1.0f;
    void apply(const ops::Kernels& kernels, float eps, const float* x, float* y, int64_t n) const noexcept {
        if (bias) {
            kernels.layer_norm(x, weight, bias, eps, y, n);
        } else {
            kernels.rms_norm(x, weight, eps, y, n);
        }
        if (factor != 1.0f) kernels.scale(y, factor, n);
    }
};

// What a layer's router reads of the residual: with two branches the residual itself, of length one; else what the experts read.
inline Norm router_norm(const LayerWeights& w, int64_t n_embd) noexcept {
    if (w.router_norm) return {w.router_norm, nullptr, 1.0f / std::sqrt(static_cast<float>(n_embd))};
    return {w.ffn_norm, w.ffn_norm_bias};
}

}  // namespace moepic
