#include "cache/hit_curve.h"

#include <algorithm>

#include "base/error.h"

namespace moepic::cache {

std::vector<double> lru_hit_curve(const Routing& routing, int layer, int n_expert, int n_warm) {
    if (layer < 0 || layer >= routing.n_layer || n_expert < 1) fail(Code::argument, "hit curve: layer ", layer, " of ", routing.n_layer);
    std::vector<int32_t> stack;  // most recent first
    std::vector<double> found(n_expert + 1, 0.0);
    double total = 0.0;
    for (int token = 0; token < routing.n_token; ++token) {
        const auto ids = routing.at(token, layer);
        for (const int32_t id : ids) {
            if (id < 0 || token < n_warm) continue;
            total += 1.0;
            const auto at = std::find(stack.begin(), stack.end(), id);
            if (at != stack.end()) found[at - stack.begin() + 1] += 1.0;  // n slots hold it from this n on
        }
        for (const int32_t id : ids) {
            if (id < 0) continue;
            const auto at = std::find(stack.begin(), stack.end(), id);
            if (at != stack.end()) stack.erase(at);
            stack.insert(stack.begin(), id);
        }
    }
    double sum = 0.0;
    for (double& hits : found) {
        sum += hits;
        hits = total > 0.0 ? sum / total : 0.0;
    }
    found[n_expert] = 1.0;
    return found;
}

std::vector<double> concave_hull(const std::vector<double>& hits) {
    std::vector<size_t> corners;
    for (size_t n = 0; n < hits.size(); ++n) {
        // Drop corners that lie on or below the line to the new point.
        while (corners.size() > 1) {
            const size_t a = corners[corners.size() - 2], b = corners.back();
            const auto run = static_cast<double>(n - a);
            if (hits[b] > hits[a] + (hits[n] - hits[a]) * static_cast<double>(b - a) / run) break;
            corners.pop_back();
        }
        corners.push_back(n);
    }
    std::vector<double> hull(hits.size());
    for (size_t i = 0; i + 1 < corners.size(); ++i) {
        const size_t a = corners[i], b = corners[i + 1];
        for (size_t n = a; n <= b; ++n) {
            const double along = static_cast<double>(n - a) / static_cast<double>(b - a);
            hull[n] = hits[a] + (hits[b] - hits[a]) * along;
        }
    }
    if (!hull.empty()) hull.front() = hits.front(), hull.back() = hits.back();
    return hull;
}

}  // namespace moepic::cache
