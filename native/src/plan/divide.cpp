#include "plan/divide.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace moepic::plan {
namespace {

constexpr int64_t kMostUnits = 4096;  // merging two curves costs the product of their lengths: some milliseconds at this size

// The least price of some layers together for 0, 1, 2 ... units, and what the first half of them gets of it.
struct Merged {
    std::vector<double> price;
    std::vector<int> left;
};

class Division {
public:
    Division(std::span<const std::vector<double>> curves, int64_t units) : curves_(curves), tree_(4 * curves.size()) {
        int64_t most = 0;
        for (const auto& curve : curves) most += static_cast<int64_t>(curve.size()) - 1;
        units_ = static_cast<int>(std::min(units, most));
    }

    std::vector<int> run() {
        std::vector<int> given(curves_.size());
        merge(0, curves_.size(), 1);
        hand_out(0, curves_.size(), 1, units_, given);
        return given;
    }

private:
    void merge(size_t begin, size_t end, size_t node) {
        Merged& merged = tree_[node];
        if (end - begin == 1) {
            merged.price = curves_[begin];
            merged.price.resize(std::min(merged.price.size(), static_cast<size_t>(units_) + 1));
            return;
        }
        const size_t middle = (begin + end) / 2;
        merge(begin, middle, 2 * node);
        merge(middle, end, 2 * node + 1);
        const auto &a = tree_[2 * node].price, &b = tree_[2 * node + 1].price;
        const int size = std::min(static_cast<int>(a.size() + b.size()) - 2, units_);
        merged.price.assign(size + 1, std::numeric_limits<double>::infinity());
        merged.left.assign(size + 1, 0);
        // (min, +) convolution.
        for (int i = 0; i < static_cast<int>(a.size()) && i <= size; ++i) {
            const int most = std::min(static_cast<int>(b.size()) - 1, size - i);
            for (int j = 0; j <= most; ++j) {
                const double sum = a[i] + b[j];
                if (sum < merged.price[i + j]) merged.price[i + j] = sum, merged.left[i + j] = i;
            }
        }
    }

    void hand_out(size_t begin, size_t end, size_t node, int units, std::vector<int>& given) const {
        if (end - begin == 1) {
            given[begin] = units;
            return;
        }
        const size_t middle = (begin + end) / 2;
        const int left = tree_[node].left[units];
        hand_out(begin, middle, 2 * node, left, given);
        hand_out(middle, end, 2 * node + 1, units - left, given);
    }

    std::span<const std::vector<double>> curves_;
    std::vector<Merged> tree_;
    int units_ = 0;
};

}  // namespace

int64_t unit_bytes(const Problem& problem) {
    int64_t exact = 0, total = 0;
    for (const Layer& layer : problem.layers) {
        exact = std::gcd(exact, layer.granule_bytes);
        total += layer.n_expert * layer.expert_bytes();
    }
    return std::max(exact, (total + kMostUnits - 1) / kMostUnits);
}

int units_of(const Layer& layer, int64_t unit) {
    return static_cast<int>((layer.n_expert * layer.expert_bytes() + unit - 1) / unit);
}

std::vector<int> divide(std::span<const std::vector<double>> curves, int64_t units) {
    return Division(curves, units).run();
}

}  // namespace moepic::plan
