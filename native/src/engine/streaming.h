// Experts that do not all lie where they are computed, as plain data: how they are kept and brought, and what was served; and the face of
// whoever does it, a streamer of files and links (streamer.h) or a device (device_experts.h).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cache/cache.h"
#include "expert/store.h"
#include "predict/predictor.h"
#include "transfer/file_lane.h"
#include "transfer/lane.h"

namespace moepic {

struct StreamOptions {
    cache::CacheOptions cache;
    bool choose_policy = false;   // `auto`: replays the recent routing through candidates, in the background, and keeps the best
    bool adapt = true;            // tries out whether prefetching and a CPU lane pay, by wall time, and leaves off what does not
    bool choose_eviction = true;  // whole experts where the file can only be read so, else granules
    predict::Options predict{.source = predict::Source::next_layer};
    int lookahead = 1;           // layers; next_layer only, 1 or 2
    int64_t cache_bytes = -1;    // of the arena; -1: what the RAM budget leaves, or every expert
    uint64_t staging_bytes = 0;  // of frames; 0: 32 MiB, or at least two transfers
    transfer::FileIo io = transfer::FileIo::automatic;
    bool direct = true;
    bool strict = false;
    // An emulated link: experts lie in RAM, the arena plays the device's memory, and copies take their time.
    double link_bytes_s = 0.0;  // 0: no such link, experts lie in the file
    double link_latency_s = 0.0;
    double cpu_bytes_s = 0.0;       // with a link: granules computed in place, no faster than this; 0: no CPU lane
    std::vector<double> profile{};  // [all experts of all MoE layers]: what to start warm with; empty: cold
};

struct StreamLayer {
    int32_t il = 0;  // number in the model
    int n_expert = 0;
    int n_used = 0;
    StoredLayer stored;
};

struct StreamTally {
    int64_t n_hit = 0, n_partial = 0, n_miss = 0;                                  // routed experts, as found
    int64_t n_resident = 0, n_link = 0, n_in_place = 0, n_prefetched = 0;          // granules, by how they were served
    int64_t demand_bytes = 0, useful_bytes = 0, wasted_bytes = 0, late_bytes = 0;  // bytes of granules
    double stall_s = 0.0;                                                          // wall time in which every compute thread waited
    void add(const StreamTally& other);
};

// What a pass found and did, for traces.
struct PassReport {
    double waited_s = 0.0;
    int n_resident = 0, n_link = 0, n_in_place = 0, n_prefetched = 0;
    std::span<const int32_t> guess{};  // ids predicted for this layer before its router spoke; empty: none
    std::span<const int32_t> found{};  // [expert] granules resident before it was asked for, of the experts used; empty: all
};

// What the host did in layers of decode on a device. Layers that the device routed itself, of batches of up to kFewTokens as well, had no
// round trip.
struct RoundTrips {
    int64_t n_layers = 0, n_routed_there = 0;
    double waited_s = 0.0;   // for the router's logits
    double planned_s = 0.0;  // from there to the launch of the residents' kernels
};

// Whether a device is given tokens as graphs: where a trial finds it faster, or as asked.
enum class Graphs : int8_t { automatic = -1, never = 0, always = 1 };

// What a trial found last, and what holds now.
struct Verdict {
    bool is_on = false;
    double cost = 0.0;  // of having it on, as a share of a token's time; negative: it saves. 0: not decided yet
    int n_switched_off = 0;
};
struct StreamStats {
    std::vector<StreamTally> decode, prefill;  // [layer]
    std::vector<predict::Score> scores;        // [layer]
    transfer::LaneStats lane;
    std::string lane_text, policy, note;
    double lane_bytes_s = 0.0, cpu_bytes_s = 0.0;
    int64_t cache_bytes = 0, resident_bytes = 0, loads = 0, evictions = 0;
    uint64_t staging_bytes = 0, desk_bytes = 0;
    uint64_t given_back_bytes = 0;                // of the cache since load, for other memory on the device
    uint64_t pinned_bytes = 0, to_pin_bytes = 0;  // of the experts in RAM; still to come
    int n_policy_changes = 0;
    Verdict prefetch, cpu_lane, graphs;
    RoundTrips round_trips;
    int64_t n_graph_tokens = 0, n_graphs = 0;  // tokens that were a graph each; graphs captured for them
};

class ExpertService {
public:
    // From this many tokens on a prompt touches nearly every expert: the next layer's are fetched without a guess, and only what is worth
    // more than what decode left in the cache stays.
    static constexpr int kManyTokens = 32;
    // Up to this many, granules are computed one by one as they become ready, and a CPU lane takes part.
    static constexpr int kFewTokens = 8;

    virtual ~ExpertService() = default;
    ExpertService() = default;
    ExpertService(const ExpertService&) = delete;
    ExpertService& operator=(const ExpertService&) = delete;

    // n tokens start through the layers.
    virtual void begin_tokens(int64_t n) = 0;
    virtual int n_layer() const = 0;  // MoE layers
    virtual int32_t il(int layer) const = 0;
    virtual StreamStats stats() = 0;
    virtual void reset_stats() = 0;
    // Uses of every expert since the start, all layers in order.
    virtual std::vector<double> uses() = 0;
    // Recounts the residency; throws Error(internal). For tests.
    virtual void check() = 0;
};

}  // namespace moepic
