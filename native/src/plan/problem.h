// What a plan is made from and what it says. Inputs are measurements and recorded (or assumed) routing; nothing here is allocated or read.
//
// Names: B budget, b bytes of an expert, G granules of an expert, K experts a token uses, theta = top / G the split ratio, h(n) the hit
// rate of n slots, P, C, D, H bytes per second of the link, of the CPU, of the memory both read, of the device.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moepic::plan {

// Rates in bytes per second, measured; together means while the others run.
struct Machine {
    double link = 0.0;        // P: the slow tier to where granules are computed (PCIe, or the file)
    double cpu = 0.0;         // C: granules computed where they lie; 0: no such lane
    double together = 0.0;    // D: what link and cpu get between them; the memory they share. 0: P + C
    double device = 0.0;      // H: resident granules
    double cpu_sync_s = 0.0;  // what a layer pays for using the CPU lane at all (round trip)
};

struct Layer {
    int n_expert = 0;
    int n_granule = 0;
    int64_t granule_bytes = 0;
    double compute_s = 0.0;      // attention, router, shared experts: paid whatever is cached
    double window_s = 0.0;       // T: time before the router speaks in which predicted granules can arrive
    double recall = 0.0;         // q: share of experts predicted rightly
    std::vector<int> cuts{};     // legal tops in granules, ascending, 1 .. G; G is always legal
    std::vector<double> hits{};  // h(n) for n = 0 .. n_expert slots of whole or top experts, not decreasing, h(0) = 0

    int64_t expert_bytes() const { return n_granule * granule_bytes; }
};

struct Problem {
    Machine machine;
    std::vector<Layer> layers;
    int n_used = 0;            // K
    int64_t budget_bytes = 0;  // for experts alone: staging and keys and values are already taken off
    // Recorded routing, [n_token, n_layer, n_used], -1 for none: what `automatic` optimises over. The other modes need only `hits`.
    int n_token = 0;
    std::span<const int32_t> routing{};
};

enum class Mode : int { automatic = 0, paper = 1, uniform = 2, fixed = 3, none = 4 };

struct LayerPlan {
    int64_t bytes = 0;        // reserved for this layer
    int top = 0;              // granules per cached expert; of an automatic plan, the largest
    int slots = 0;            // experts cached, whole or in part
    double theta = 0.0;       // bytes / (b slots)
    double miss_bytes = 0.0;  // expected per token
    double stall_s = 0.0;     // expected per token
};

struct Plan {
    std::vector<LayerPlan> layers;
    std::vector<int> resident{};  // automatic: granules of every expert of every layer, in order
    int64_t bytes = 0;
    double objective_s = 0.0;                // expected seconds per token: compute, resident work and stalls
    double stall_s = 0.0;                    // of it
    double link_share = 0.0;                 // of missing bytes; the CPU takes the rest
    double link_only_s = 0.0, both_s = 0.0;  // the objective with either choice of lanes; equal where there is no CPU lane
    int rounds = 0;                          // paper: rounds until budgets and ratios agreed
};

void validate(const Problem& problem);

// The rate at which missing bytes are served: R = min(P + C, D), or P without the CPU.
double miss_rate(const Machine& machine, bool with_cpu);

}  // namespace moepic::plan
