#include "plan/curve.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>
#include <tuple>

#include "plan/divide.h"

namespace moepic::plan {
namespace {

constexpr double kSoftness = 0.3;       // of an expert's load: over how much corners are rounded
constexpr double kSoftShare = 0.3;      // of the rounded time beside the true one, when granules are swapped
constexpr int64_t kLookedAt = 1 << 14;  // experts looked at for swaps in one walk
// Granules of the model times uses of its recorded tokens, up to which a layer is walked four times (one walk loses 0.1 to 0.2 %), and up
// to which eight walks, more swaps and a beam are affordable: either takes some tens of milliseconds.
constexpr int64_t kFourWalks = 1 << 22, kBeam = 1 << 18;
constexpr size_t kBeamWidth = 16;

int64_t granules_of(const Problem& problem) {
    int64_t sum = 0;
    for (const Layer& layer : problem.layers) sum += int64_t{layer.n_expert} * layer.n_granule;
    return sum;
}

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
          corner_s_(kSoftness * static_cast<double>(layer_.expert_bytes()) / time_.rate),
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

    // Swaps granules as long as that is faster, at most `most` times: by the true time, and before that, for soft_share > 0, by that and as
    // much of the rounded one, which leads over flat ground. For each of the few experts that would be missed least, what saves most in its
    // place.
    void exchange(int most, int n_tried, double soft_share) {
        for (int swap = 0; soft_share > 0.0 && swap < most && exchange_one(n_tried, soft_share); ++swap) is_stale_ = true;
        for (int swap = 0; swap < most && exchange_one(n_tried, 0.0); ++swap) is_stale_ = true;
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

    // Rounding of equal savings must not decide: less than least_s_ apart they are equal. Then the worth to later tokens does, which
    // spreads granules over experts; without a window nothing is gained by that, and an expert that was begun is made whole.
    Step step(int expert) const {
        const double saved_s = saving_s(expert, direction_, soft_s_);
        const int granule = resident_[expert] - (direction_ < 0);
        const int rank = time_.hidden_bytes > 0.0 ? granule : layer_.n_granule - granule;
        return {std::round(saved_s / least_s_), direction_ * samples_.worth(first_ + expert, rank, layer_.n_granule), expert};
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

    bool exchange_one(int n_tried, double soft_share) {
        const auto saving = [&](int expert, int granules) {
            const double true_s = saving_s(expert, granules, 0.0);
            return soft_share > 0.0 ? true_s + soft_share * saving_s(expert, granules, corner_s_) : true_s;
        };
        std::vector<std::pair<double, int>> out;  // loss, expert
        for (int e = 0; e < layer_.n_expert; ++e) {
            if (resident_[e] > 0) out.emplace_back(-saving(e, -1), e);
        }
        const auto tried = out.begin() + std::min<std::ptrdiff_t>(n_tried, std::ssize(out));
        std::partial_sort(out.begin(), tried, out.end());
        for (auto it = out.begin(); it != tried; ++it) {
            change(it->second, -1);
            int in = -1;
            double won = it->first + least_s_;
            for (int e = 0; e < layer_.n_expert; ++e) {
                if (e == it->second || resident_[e] == layer_.n_granule || samples_.tokens(first_ + e).empty()) continue;
                const double gain = saving(e, +1);
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
    double soft_s_, corner_s_, least_s_;
    std::vector<double> misses_;  // [token] bytes
    std::vector<int32_t> resident_;
    int64_t n_resident_ = 0;
    int direction_ = 0;
    bool is_stale_ = true;  // the queue no longer fits the residency
    std::priority_queue<Step> queue_;
};

// The kBeamWidth best residencies of each size, each made from those one granule smaller; visit(n, residency) gets the best. For small
// models, where two experts may have to change places with two others at once and no single swap gets there.
template <class Visit>
void beam(const Problem& problem, const Samples& samples, size_t il, bool with_cpu, Visit&& visit) {
    struct State {
        std::vector<int32_t> resident;
        std::vector<double> misses;  // [token] bytes
    };
    const Layer& layer = problem.layers[il];
    const LayerTime time(problem, il, with_cpu);
    const double soft_s = kSoftness * static_cast<double>(layer.expert_bytes()) / time.rate;
    std::vector<State> states{{std::vector<int32_t>(layer.n_expert, 0), samples.misses(problem, il)}}, next;
    std::vector<std::tuple<double, double, size_t, int>> steps;  // time, rounded time, state, expert
    for (int64_t n = 1; n <= int64_t{layer.n_expert} * layer.n_granule; ++n) {
        steps.clear();
        for (size_t from = 0; from < states.size(); ++from) {
            double time_s = 0.0, rounded_s = 0.0;
            for (const double bytes : states[from].misses) time_s += time.of(bytes), rounded_s += time.of(bytes, soft_s);
            for (int e = 0; e < layer.n_expert; ++e) {
                if (states[from].resident[e] == layer.n_granule) continue;
                double saved_s = 0.0, rounded = 0.0;
                for (const int token : samples.tokens(samples.first(il) + e)) {
                    const double before = states[from].misses[token], after = before - static_cast<double>(layer.granule_bytes);
                    saved_s += time.of(before) - time.of(after);
                    rounded += time.of(before, soft_s) - time.of(after, soft_s);
                }
                steps.emplace_back(time_s - saved_s, rounded_s - rounded, from, e);
            }
        }
        std::sort(steps.begin(), steps.end());
        next.clear();
        for (const auto& [time_s, rounded_s, from, expert] : steps) {
            std::vector<int32_t> resident = states[from].resident;
            ++resident[expert];
            if (std::any_of(next.begin(), next.end(), [&](const State& other) { return other.resident == resident; })) continue;
            next.push_back({std::move(resident), states[from].misses});
            for (const int token : samples.tokens(samples.first(il) + expert))
                next.back().misses[token] -= static_cast<double>(layer.granule_bytes);
            if (next.size() == kBeamWidth) break;
        }
        std::swap(states, next);
        visit(n, states.front().resident);
    }
}

}  // namespace

LayerCurve layer_curve(const Problem& problem, const Samples& samples, size_t il, bool with_cpu, int64_t unit) {
    const Layer& layer = problem.layers[il];
    const int64_t all = int64_t{layer.n_expert} * layer.n_granule;
    const int most = units_of(layer, unit);
    const bool has_window = LayerTime(problem, il, with_cpu).hidden_bytes > 0.0;
    LayerCurve curve;
    curve.time_s.assign(most + 1, std::numeric_limits<double>::max());
    curve.residents.assign(most + 1, std::vector<int32_t>(layer.n_expert, 0));
    const auto offer = [&](int u, const Walk& walk) {
        const double total_s = walk.total_s();
        if (total_s < curve.time_s[u] * (1.0 - 1e-12)) curve.time_s[u] = total_s, curve.residents[u] = walk.resident();
    };

    const int64_t uses = int64_t{problem.n_token} * problem.n_used * granules_of(problem);
    const bool is_small = uses <= kFourWalks, is_tiny = uses <= kBeam;
    const int64_t looked_at = is_tiny ? 4 * kLookedAt : kLookedAt;
    const int places = static_cast<int>(std::clamp<int64_t>(looked_at / (4 * layer.n_expert), 1, most + 1));
    const int n_swap = std::max(1, static_cast<int>(looked_at / (2 * layer.n_expert * places)));
    const int n_tried = std::clamp(64 / layer.n_expert, 1, 8);
    const double soft_share = is_tiny && has_window ? kSoftShare : 0.0;
    const auto stroll = [&](double softness, bool and_back) {
        Walk walk(problem, samples, il, with_cpu, softness);
        const auto visit = [&](int u, int direction) {
            walk.go_to(std::min(u * unit / layer.granule_bytes, all), direction);
            const auto place = [&](int64_t at) { return at * places / (most + 1); };
            if (u > 0 && place(u) != place(u - 1)) walk.exchange(n_swap, n_tried, soft_share);
            offer(u, walk);
        };
        for (int u = 0; u <= most; ++u) visit(u, +1);
        for (int u = most - 1; and_back && u > 0; --u) visit(u, -1);
    };
    // Of equally fast residencies the first found stays: with a window the smoother one, without one whole experts.
    stroll(has_window ? kSoftness : 0.0, is_small);
    if (is_small) stroll(has_window ? 0.0 : kSoftness, true);
    if (is_tiny) {
        if (has_window) stroll(kSoftness / 3, true), stroll(kSoftness * 3, true);
        Walk walk(problem, samples, il, with_cpu, 0.0);
        beam(problem, samples, il, with_cpu, [&](int64_t n, const std::vector<int32_t>& resident) {
            walk.set(resident);
            walk.exchange(n_swap, n_tried, soft_share);
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
