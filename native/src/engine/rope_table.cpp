#include "engine/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moepic {
namespace {

// The pair whose wavelength turns `turns` times in the original context (YaRN, equation 17 solved for the dimension).
double pair_of_turns(const RopeConfig& c, double turns) {
    return static_cast<double>(c.n_rot) * std::log(static_cast<double>(c.original_context) / (turns * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(c.base));
}

}  // namespace

RopeTable::RopeTable(const RopeConfig& c, const float* divisors) {
    const int64_t pairs = c.n_rot / 2;
    double low = 0.0, high = 0.0;
    if (c.scaling == RopeScaling::yarn) {
        low = pair_of_turns(c, c.beta_fast);
        high = pair_of_turns(c, c.beta_slow);
        if (c.truncate) {
            low = std::floor(low);
            high = std::ceil(high);
        }
        low = std::max(0.0, low);
        high = std::min(static_cast<double>(c.n_rot - 1), high);
        if (low == high) high += 0.001;
        magnitude_ = c.attn_factor * (c.factor > 1.0 ? 1.0 + 0.1 * std::log(c.factor) : 1.0);
    }
    if (c.scaling == RopeScaling::long_short) magnitude_ = c.attn_factor;
    for (int64_t j = 0; j < pairs; ++j) {
        double f = std::pow(c.base, -2.0 * static_cast<double>(j) / static_cast<double>(c.n_rot));
        if (divisors) f /= static_cast<double>(divisors[j]);
        if (c.scaling == RopeScaling::linear) f /= c.factor;
        if (c.scaling == RopeScaling::yarn) {
            const double ramp = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);  // 0: as trained, 1: interpolated
            f = f * (1.0 - ramp) + f / c.factor * ramp;
        }
        frequency_.push_back(f);
    }
}

void RopeTable::fill(int64_t first_pos, int64_t n, float* out) const noexcept {
    for (int64_t t = 0; t < n; ++t) {
        for (double f : frequency_) {
            const double angle = static_cast<double>(first_pos + t) * f;
            *out++ = static_cast<float>(std::cos(angle) * magnitude_);
            *out++ = static_cast<float>(std::sin(angle) * magnitude_);
        }
    }
}

}  // namespace moepic
