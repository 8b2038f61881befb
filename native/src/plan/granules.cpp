#include "plan/granules.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <tuple>

#include "base/error.h"
#include "plan/cost.h"

namespace moepic::plan {
namespace {

constexpr double kHalfLife = 24.0;  // tokens; routing of text drifts this fast (simulation.md, section 7)
constexpr double kOmega = 1.0;

// A layer's part of the objective as a function of what one token misses there.
struct LayerTime {
    double floor_s = 0.0;
    double hidden_bytes = 0.0;  // F
    double rate = 0.0;          // R
    double of(double miss_bytes) const { return std::max(floor_s, (miss_bytes - hidden_bytes) / rate); }
    // The same with its corner rounded over some `soft_s`: it says how far a token is from the corner, where of() says only on which side.
    double of(double miss_bytes, double soft_s) const {
        const double above = (miss_bytes - hidden_bytes) / rate - floor_s;
        if (soft_s <= 0.0 || std::abs(above) > 30.0 * soft_s) return floor_s + std::max(0.0, above);
        return floor_s + soft_s * std::log1p(std::exp(above / soft_s));
    }
};

LayerTime layer_time(const Problem& problem, size_t il, bool with_cpu) {
    const Layer& layer = problem.layers[il];
    return {floor_s(problem, layer, with_cpu), layer.recall * layer.window_s * problem.machine.link, miss_rate(problem.machine, with_cpu)};
}

// Which recorded tokens use which expert.
class Samples {
public:
    explicit Samples(const Problem& problem) : problem_(problem) {
        for (const Layer& layer : problem.layers) {
            first_.push_back(n_expert_);
            n_expert_ += layer.n_expert;
        }
        tokens_.resize(n_expert_);
        for_each([&](int token, size_t expert) { tokens_[expert].push_back(token); });
    }
    size_t n_expert() const { return n_expert_; }
    size_t first(size_t layer) const { return first_[layer]; }
    const std::vector<int>& tokens(size_t expert) const { return tokens_[expert]; }

    std::vector<double> frequency() const {
        std::vector<double> f(n_expert_, 0.0);
        for_each([&](int token, size_t expert) { f[expert] += std::exp2((token + 1 - problem_.n_token) / kHalfLife); });
        return f;
    }

    // Bytes each token misses in each layer when nothing is resident: [layer][token].
    std::vector<std::vector<double>> misses() const {
        std::vector<std::vector<double>> bytes(problem_.layers.size(), std::vector<double>(problem_.n_token, 0.0));
        for (size_t il = 0; il < bytes.size(); ++il) {
            for (size_t e = first_[il]; e < first_[il] + problem_.layers[il].n_expert; ++e) {
                for (const int token : tokens_[e]) bytes[il][token] += static_cast<double>(problem_.layers[il].expert_bytes());
            }
        }
        return bytes;
    }

private:
    template <class Visit>
    void for_each(Visit&& visit) const {
        for (size_t i = 0; i < problem_.routing.size(); ++i) {
            const size_t row = i / problem_.n_used, il = row % problem_.layers.size();
            if (problem_.routing[i] >= 0) visit(static_cast<int>(row / problem_.layers.size()), first_[il] + problem_.routing[i]);
        }
    }

    const Problem& problem_;
    size_t n_expert_ = 0;
    std::vector<size_t> first_;
    std::vector<std::vector<int>> tokens_;
};

// The path of plan_granules: residencies of growing size, each no slower than the one before, whatever the budget. A budget is a place on
// it.
class Path {
public:
    // softness: over how much of an expert's load the corners of the objective are rounded when granules are chosen.
    Path(const Problem& problem, const Samples& samples, bool with_cpu, double softness)
        : problem_(problem),
          samples_(samples),
          misses_(samples.misses()),
          frequency_(samples.frequency()),
          resident_(samples.n_expert(), 0),
          version_(samples.n_expert(), 0),
          is_changed_(problem.layers.size(), false) {
        for (size_t il = 0; il < problem.layers.size(); ++il) {
            times_.push_back(layer_time(problem, il, with_cpu));
            soft_s_.push_back(softness * static_cast<double>(problem.layers[il].expert_bytes()) / times_.back().rate);
            total_bytes_ += problem.layers[il].n_expert * problem.layers[il].expert_bytes();
            for (size_t e = samples.first(il); e < end(il); ++e) push(il, e);
        }
    }

    // Greedy by saving per byte, recomputed only when a granule comes to the top of the heap: an outdated saving is never too small.
    // Granules that save nothing on the recorded tokens follow in the order of their worth, for the tokens to come.
    std::vector<int> walk(int64_t budget_bytes) {
        int64_t used = 0, checked = 0;
        while (!heap_.empty()) {
            const Candidate old = heap_.top();
            heap_.pop();
            if (old.version != version_[old.expert] || resident_[old.expert] == problem_.layers[old.layer].n_granule) continue;
            const Candidate now = candidate(old.layer, old.expert);
            if (!heap_.empty() && now < heap_.top()) {
                heap_.push(now);
                continue;
            }
            // The first that does not fit ends it, so that every larger budget goes at least as far.
            used += problem_.layers[now.layer].granule_bytes;
            if (used > budget_bytes) break;
            change(now.layer, now.expert, +1);
            heap_.push(candidate(now.layer, now.expert));
            // Choices made early can be poor company for later ones: look back, at places that do not depend on the budget.
            if (used - checked >= total_bytes_ / kLooksBack) {
                checked = used;
                for (size_t il = 0; il < problem_.layers.size(); ++il) exchange(il);
            }
        }
        return resident_;
    }

private:
    static constexpr int kLooksBack = 64;
    static constexpr int kMostSwaps = 64;  // per layer and look

    struct Candidate {
        double saving_s_per_byte;
        double worth;
        size_t layer, expert;
        int version;
        bool operator<(const Candidate& other) const {
            return std::tuple(saving_s_per_byte, worth, other.expert) < std::tuple(other.saving_s_per_byte, other.worth, expert);
        }
    };

    size_t end(size_t il) const { return samples_.first(il) + problem_.layers[il].n_expert; }
    void push(size_t il, size_t expert) {
        if (!samples_.tokens(expert).empty()) heap_.push(candidate(il, expert));
    }
    void change(size_t il, size_t expert, int granules) {
        resident_[expert] += granules;
        for (const int token : samples_.tokens(expert))
            misses_[il][token] -= static_cast<double>(granules * problem_.layers[il].granule_bytes);
        is_changed_[il] = true;
    }

    // Seconds over all tokens that change if `granules` (+1 or -1) of the expert are added.
    double saving_s(size_t il, size_t expert, int granules, double soft_s = 0.0) const {
        const auto bytes = static_cast<double>(granules * problem_.layers[il].granule_bytes);
        double saving = 0.0;
        for (const int token : samples_.tokens(expert)) {
            const double misses = misses_[il][token];
            saving += times_[il].of(misses, soft_s) - times_[il].of(misses - bytes, soft_s);
        }
        return saving;
    }

    Candidate candidate(size_t il, size_t expert) const {
        const Layer& layer = problem_.layers[il];
        const double share = 1.0 - static_cast<double>(resident_[expert]) / layer.n_granule;
        // Rounding of equal savings must not decide: below a billionth of a token's load they count as equal.
        const double step = 1e-9 * problem_.n_used / times_[il].rate;
        const double per_byte = saving_s(il, expert, +1, soft_s_[il]) / static_cast<double>(layer.granule_bytes);
        return {std::round(per_byte / step) * step, frequency_[expert] * (1.0 + kOmega * share), il, expert, version_[expert]};
    }

    // Swaps granules of one layer's experts as long as that is faster: what saves most comes in for what is missed least.
    void exchange(size_t il) {
        if (!is_changed_[il]) return;
        const Layer& layer = problem_.layers[il];
        const double least = 1e-9 * problem_.n_used * static_cast<double>(layer.granule_bytes) / times_[il].rate;
        bool is_swapped = false;
        for (int swap = 0; swap < kMostSwaps; ++swap) {
            size_t out = end(il), in = end(il);
            double lost = 0.0, won = 0.0;
            for (size_t e = samples_.first(il); e < end(il); ++e) {
                if (resident_[e] == 0) continue;
                const double loss = -saving_s(il, e, -1);
                if (out == end(il) || loss < lost) out = e, lost = loss;
            }
            if (out == end(il)) break;
            change(il, out, -1);
            for (size_t e = samples_.first(il); e < end(il); ++e) {
                if (e == out || resident_[e] == layer.n_granule || samples_.tokens(e).empty()) continue;
                const double gain = saving_s(il, e, +1);
                if (in == end(il) || gain > won) in = e, won = gain;
            }
            if (in == end(il) || won <= lost + least) {
                change(il, out, +1);
                break;
            }
            change(il, in, +1);
            is_swapped = true;
        }
        is_changed_[il] = false;
        if (!is_swapped) return;
        for (size_t e = samples_.first(il); e < end(il); ++e) {
            ++version_[e];
            push(il, e);
        }
    }

    const Problem& problem_;
    const Samples& samples_;
    std::vector<std::vector<double>> misses_;  // [layer][token] bytes
    std::vector<double> frequency_;
    std::vector<int> resident_;
    std::vector<int> version_;  // of an expert's candidate; older ones in the heap are void
    std::vector<bool> is_changed_;
    std::vector<LayerTime> times_;
    std::vector<double> soft_s_;  // [layer]
    std::priority_queue<Candidate> heap_;
    int64_t total_bytes_ = 0;
};

std::vector<int> most_worth(const Problem& problem, const Samples& samples) {
    const std::vector<double> frequency = samples.frequency();
    std::vector<std::tuple<double, size_t, size_t>> order;  // -worth per granule, layer, expert
    for (size_t il = 0; il < problem.layers.size(); ++il) {
        const Layer& layer = problem.layers[il];
        for (size_t e = samples.first(il); e < samples.first(il) + layer.n_expert; ++e) {
            if (frequency[e] <= 0.0) continue;
            for (int j = 0; j < layer.n_granule; ++j) {
                order.emplace_back(-frequency[e] * (1.0 + kOmega * (1.0 - static_cast<double>(j) / layer.n_granule)), il, e);
            }
        }
    }
    std::sort(order.begin(), order.end());
    std::vector<int> resident(samples.n_expert(), 0);
    int64_t left = problem.budget_bytes;
    for (const auto& [worth, il, expert] : order) {
        if (problem.layers[il].granule_bytes > left) break;
        left -= problem.layers[il].granule_bytes;
        ++resident[expert];
    }
    return resident;
}

Plan evaluate(const Problem& problem, const Samples& samples, const std::vector<int>& resident, bool with_cpu) {
    Plan plan;
    plan.resident = resident;
    std::vector<std::vector<double>> misses = samples.misses();
    for (size_t il = 0; il < problem.layers.size(); ++il) {
        const Layer& layer = problem.layers[il];
        LayerPlan row;
        for (size_t e = samples.first(il); e < samples.first(il) + layer.n_expert; ++e) {
            row.bytes += resident[e] * layer.granule_bytes;
            row.top = std::max(row.top, resident[e]);
            row.slots += resident[e] > 0;
            for (const int token : samples.tokens(e)) misses[il][token] -= static_cast<double>(resident[e] * layer.granule_bytes);
        }
        row.theta = row.slots ? static_cast<double>(row.bytes) / static_cast<double>(row.slots * layer.expert_bytes()) : 0.0;
        const LayerTime time = layer_time(problem, il, with_cpu);
        for (const double bytes : misses[il]) {
            const bool cpu_works = with_cpu && bytes > time.hidden_bytes;
            row.miss_bytes += bytes / problem.n_token;
            row.stall_s += (time.of(bytes) - time.floor_s + (cpu_works ? problem.machine.cpu_sync_s : 0.0)) / problem.n_token;
        }
        plan.layers.push_back(row);
        plan.bytes += row.bytes;
        plan.stall_s += row.stall_s;
        plan.objective_s += layer.compute_s + time.floor_s + row.stall_s;
    }
    const Machine& m = problem.machine;
    plan.link_share = with_cpu ? m.link / (m.link + m.cpu) : 1.0;
    return plan;
}

// Runs `make` for the link alone and for both lanes, and keeps the choice that is faster.
template <class Make>
Plan with_best_lanes(const Problem& problem, const Samples& samples, Make&& make) {
    if (problem.n_token < 1) fail(Code::argument, "plan: this mode needs recorded routing of at least one token, or a prior");
    Plan link = evaluate(problem, samples, make(false), false);
    const double link_s = link.objective_s;
    if (problem.machine.cpu <= 0.0) {
        link.link_only_s = link.both_s = link_s;
        return link;
    }
    Plan both = evaluate(problem, samples, make(true), true);
    const double both_s = both.objective_s;
    Plan& best = both_s < link_s ? both : link;
    best.link_only_s = link_s, best.both_s = both_s;
    return std::move(best);
}

}  // namespace

Plan plan_granules(const Problem& problem) {
    const Samples samples(problem);
    return with_best_lanes(problem, samples, [&](bool with_cpu) {
        // Neither path is the best at every budget; the better of two is, and stays monotone because both are.
        Plan best;
        for (const double softness : {0.0, 0.3}) {
            Plan plan = evaluate(problem, samples, Path(problem, samples, with_cpu, softness).walk(problem.budget_bytes), with_cpu);
            if (best.layers.empty() || plan.objective_s < best.objective_s) best = std::move(plan);
        }
        return best.resident;
    });
}

Plan plan_by_worth(const Problem& problem) {
    const Samples samples(problem);
    return with_best_lanes(problem, samples, [&](bool) { return most_worth(problem, samples); });
}

Plan evaluate_residency(const Problem& problem, const std::vector<int>& resident) {
    const Samples samples(problem);
    if (resident.size() != samples.n_expert()) fail(Code::argument, "plan: ", resident.size(), " experts, expected ", samples.n_expert());
    return with_best_lanes(problem, samples, [&](bool) { return resident; });
}

}  // namespace moepic::plan
