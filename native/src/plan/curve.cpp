#include "plan/curve.h"

#include <algorithm>
#include <cmath>
#include <compare>
#include <limits>
#include <queue>
#include <tuple>

#include "plan/divide.h"

namespace moepic::plan {
namespace {

constexpr double kSoftness = 0.3;        // of an expert's load: over how much corners are rounded
constexpr int64_t kSmall = 512;          // granules of a layer up to which it is walked four times; larger ones lose 0.1 to 0.2 % by one
constexpr int64_t kLookedAt = 1 << 14;   // experts looked at for swaps in one walk
constexpr int64_t kBeamSteps = 1 << 12;  // granules times experts of a layer up to which a beam is affordable
constexpr size_t kBeamWidth = 16;

// A residency of one layer on its walk. Granules are added and taken by lazy queues: savings only fall while granules are added (the time
// is convex in what is missed), so an outdated one is never too small, and the same holds the other way for losses.
class Walk {
public:
    Walk(const Problem& problem, const Samples& samples, size_t il, bool with_cpu, double softness)
        : layer_(problem.layers[il]),
          samples_(samples),
          first_(samples.first(il)),
          time_(problem, il, with_cpu),
          soft_s_(softness * static_cast<double>(layer_.expert_bytes()) / time_.rate),
          least_s_(1e-9 * problem.n_used * static_cast<double>(layer_.granule_bytes) / time_.rate),
          misses_(samples.misses(problem, il)),
          resident_(layer_.n_expert, 0) {}

    const std::vector<int32_t>& resident() const { return resident_; }

    double total_s() const {
        double sum = 0.0;
        for (const double bytes : misses_) sum += time_.of(bytes);
        return sum;
    }

    void set(const std::vector<int32_t>& resident) {
        for (int e = 0; e < layer_.n_expert; ++e) change(e, resident[e] - resident_[e]);
        is_stale_ = true;
    }

    // Adds or takes single granules until `n` are resident, or none is left that any token uses.
    void go_to(int64_t n, int direction) {
        if (is_stale_ || direction != direction_) line_up(direction);
        while (direction * (n - n_resident_) > 0 && !queue_.empty()) {
            const Step old = queue_.top();
            queue_.pop();
            const Step now = step(old.expert);
            if (!queue_.empty() && now < queue_.top()) {
                queue_.push(now);
                continue;
            }
            change(now.expert, direction);
            if (can_go(now.expert)) queue_.push(step(now.expert));
        }
    }

    // Swaps up to `most` granules, as long as that is faster. For each of the few experts that would be missed least, what saves most in
    // its place.
    void exchange(int most, int n_tried) {
        for (int swap = 0; swap < most && exchange_one(n_tried); ++swap) is_stale_ = true;
    }

private:
    struct Step {
        double saved_s;
        double worth;
        int expert;
        bool operator<(const Step& other) const {
            return std::tuple(saved_s, worth, other.expert) < std::tuple(other.saved_s, other.worth, expert);
        }
    };

    bool can_go(int expert) const {
        return direction_ > 0 ? resident_[expert] < layer_.n_granule && !samples_.tokens(first_ + expert).empty() : resident_[expert] > 0;
    }

    void line_up(int direction) {
        direction_ = direction, is_stale_ = false;
        std::vector<Step> steps;
        for (int e = 0; e < layer_.n_expert; ++e) {
            if (can_go(e)) steps.push_back(step(e));
        }
        queue_ = std::priority_queue<Step>(std::less<Step>(), std::move(steps));
    }

    // Rounding of equal savings must not decide: less than least_s_ apart they are equal, and the worth to later tokens does.
    Step step(int expert) const {
        const double saved_s = saving_s(expert, direction_, soft_s_);
        const int granule = resident_[expert] - (direction_ < 0);
        return {std::round(saved_s / least_s_), direction_ * samples_.worth(first_ + expert, granule, layer_.n_granule), expert};
    }

    // Seconds over all tokens that `granules` more (or fewer, then it is negative) of an expert save.
    double saving_s(int expert, int granules, double soft_s) const {
        const auto bytes = static_cast<double>(granules * layer_.granule_bytes);
        double saving = 0.0;
        for (const int token : samples_.tokens(first_ + expert)) {
            const double misses = misses_[token];
            saving +=
                soft_s > 0.0 ? time_.of(misses, soft_s) - time_.of(misses - bytes, soft_s) : time_.of(misses) - time_.of(misses - bytes);
        }
        return saving;
    }

    void change(int expert, int granules) {
        if (granules == 0) return;
        resident_[expert] += granules, n_resident_ += granules;
        for (const int token : samples_.tokens(first_ + expert)) misses_[token] -= static_cast<double>(granules * layer_.granule_bytes);
    }

    bool exchange_one(int n_tried) {
        std::vector<std::pair<double, int>> out;  // loss, expert
        for (int e = 0; e < layer_.n_expert; ++e) {
            if (resident_[e] > 0) out.emplace_back(-saving_s(e, -1, 0.0), e);
        }
        const auto tried = out.begin() + std::min<std::ptrdiff_t>(n_tried, std::ssize(out));
        std::partial_sort(out.begin(), tried, out.end());
        for (auto it = out.begin(); it != tried; ++it) {
            change(it->second, -1);
            int in = -1;
            double won = it->first + least_s_;
            for (int e = 0; e < layer_.n_expert; ++e) {
                if (e == it->second || resident_[e] == layer_.n_granule || samples_.tokens(first_ + e).empty()) continue;
                const double gain = saving_s(e, +1, 0.0);
                if (gain > won) in = e, won = gain;
            }
            change(in >= 0 ? in : it->second, +1);
            if (in >= 0) return true;
        }
        return false;
    }

    const Layer& layer_;
    const Samples& samples_;
    size_t first_;
    LayerTime time_;
    double soft_s_, least_s_;
    std::vector<double> misses_;  // [token] bytes
    std::vector<int32_t> resident_;
    int64_t n_resident_ = 0;
    int direction_ = 0;
    bool is_stale_ = true;  // the queue no longer fits the residency
    std::priority_queue<Step> queue_;
};

// The kBeamWidth best residencies of each size, each made from those one granule smaller. For small layers, where two experts may have to
// change places with two others at once and no single swap gets there.
template <class Visit>
void beam(const Problem& problem, const Samples& samples, size_t il, bool with_cpu, Visit&& visit) {
    struct State {
        double time_s, soft_s;
        std::vector<int32_t> resident;
        auto operator<=>(const State&) const = default;
    };
    const Layer& layer = problem.layers[il];
    const LayerTime time(problem, il, with_cpu);
    const double soft_s = kSoftness * static_cast<double>(layer.expert_bytes()) / time.rate;
    const std::vector<double> none = samples.misses(problem, il);
    std::vector<State> states{{0.0, 0.0, std::vector<int32_t>(layer.n_expert, 0)}}, next;
    for (int64_t n = 1; n <= int64_t{layer.n_expert} * layer.n_granule; ++n) {
        next.clear();
        for (State& state : states) {
            std::vector<double> misses = none;
            for (int e = 0; e < layer.n_expert; ++e) {
                for (const int token : samples.tokens(samples.first(il) + e))
                    misses[token] -= static_cast<double>(state.resident[e] * layer.granule_bytes);
            }
            for (int e = 0; e < layer.n_expert; ++e) {
                if (state.resident[e] == layer.n_granule) continue;
                State made{state.time_s, state.soft_s, state.resident};
                ++made.resident[e];
                for (const int token : samples.tokens(samples.first(il) + e)) {
                    const double before = misses[token], after = before - static_cast<double>(layer.granule_bytes);
                    made.time_s += time.of(after) - time.of(before);
                    made.soft_s += time.of(after, soft_s) - time.of(before, soft_s);
                }
                next.push_back(std::move(made));
            }
        }
        std::sort(next.begin(), next.end());
        next.erase(std::unique(next.begin(), next.end(), [](const State& a, const State& b) { return a.resident == b.resident; }),
                   next.end());
        next.resize(std::min(next.size(), kBeamWidth));
        std::swap(states, next);
        visit(n, states.front().resident);
    }
}

}  // namespace

LayerCurve layer_curve(const Problem& problem, const Samples& samples, size_t il, bool with_cpu, int64_t unit) {
    const Layer& layer = problem.layers[il];
    const int64_t all = int64_t{layer.n_expert} * layer.n_granule;
    const int most = units_of(layer, unit);
    LayerCurve curve;
    curve.time_s.assign(most + 1, std::numeric_limits<double>::infinity());
    curve.residents.assign(most + 1, std::vector<int32_t>(layer.n_expert, 0));
    const auto offer = [&](int u, const Walk& walk) {
        const double total_s = walk.total_s();
        if (total_s < curve.time_s[u]) curve.time_s[u] = total_s, curve.residents[u] = walk.resident();
    };

    const int places = static_cast<int>(std::clamp<int64_t>(kLookedAt / (4 * layer.n_expert), 1, most + 1));
    const int n_swap = std::max(1, static_cast<int>(kLookedAt / (2 * layer.n_expert * places)));
    const int n_tried = std::clamp(64 / layer.n_expert, 1, 8);
    const auto stroll = [&](double softness, bool and_back) {
        Walk walk(problem, samples, il, with_cpu, softness);
        const auto visit = [&](int u, int direction) {
            walk.go_to(std::min(u * unit / layer.granule_bytes, all), direction);
            const auto place = [&](int64_t at) { return at * places / (most + 1); };
            if (u > 0 && place(u) != place(u - 1)) walk.exchange(n_swap, n_tried);
            offer(u, walk);
        };
        for (int u = 0; u <= most; ++u) visit(u, +1);
        for (int u = most - 1; and_back && u > 0; --u) visit(u, -1);
    };
    const bool is_small = all <= kSmall;
    stroll(kSoftness, is_small);
    if (is_small) stroll(0.0, true);
    if (all * layer.n_expert <= kBeamSteps) {
        Walk walk(problem, samples, il, with_cpu, 0.0);
        beam(problem, samples, il, with_cpu, [&](int64_t n, const std::vector<int32_t>& resident) {
            walk.set(resident);
            walk.exchange(n_swap, n_tried);
            offer(static_cast<int>((n * layer.granule_bytes + unit - 1) / unit), walk);
        });
    }
    // What a smaller share can do, a larger one can.
    for (int u = 1; u <= most; ++u) {
        if (curve.time_s[u - 1] <= curve.time_s[u]) curve.time_s[u] = curve.time_s[u - 1], curve.residents[u] = curve.residents[u - 1];
    }
    return curve;
}

}  // namespace moepic::plan
