// The feed-forward on the host's threads. Two schedules with the same arithmetic, so a token's result does not depend on its neighbours:
//   few tokens   one job over (expert, granule): each task leaves its partials in scratch; one barrier, then the reduction.
//   many tokens  tokens grouped by expert; one job over (expert, granule) for the intermediate, one over (expert, output tiles) for down.
// Where experts are streamed the same tasks run as their granules become ready: few tokens one by one, many in waves of runs that ascend
// inside each expert, so that partials still add in order.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "engine/feed_forward.h"
#include "engine/workspace.h"
#include "expert/granule_math.h"

namespace moepic {

class CpuFeedForward final : public FeedForward {
public:
    CpuFeedForward(const Model& model, Workspace& workspace, int64_t n_batch);

    void run(int64_t il, const Work& work, int64_t n, int64_t first_position, const Probe& probe) override;
    uint64_t scratch_bytes() const noexcept override { return region_.size(); }

private:
    // Tokens that share one expert. Entries are (token, expert) pairs in group order; entry i of the batch has its own partials.
    struct Group {
        const ExpertSet* set;
        int64_t expert;
        int64_t first_entry, n_entries;
        int64_t first_partial;   // few tokens: partials of the group's first entry
        size_t intermediate_at;  // many tokens: bytes into intermediate_
        bool routed;
        const std::byte** data;  // [n_granules] where streamed granules lie once they are ready; null: in the set's strips
        const std::byte* granule(int64_t g) const noexcept { return data ? data[g] : set->granule(expert, g); }
    };
    // Granules [first, first + count) of a group.
    struct Part {
        int32_t group, first, count;
    };
    void place(Carver& carver);
    void route(int64_t il, const ActSet& acts, int64_t n);
    void make_groups(int64_t il, int64_t n);
    // act(gate x) * up x of one granule for entries [first, first + count) of a group, quantized for down, to `out` every `stride` bytes.
    void intermediate(const Group& group, int64_t granule, const std::byte* data, int64_t first, int64_t count, const Work& work,
                      std::byte* out, size_t stride, int thread);
    GranuleScratch scratch_of(int thread) const noexcept;
    // One granule of one group for few tokens: all of it, down to its partials.
    void compute_few(const Group& group, int64_t granule, const std::byte* data, const Work& work, int thread);
    void run_few(int64_t il, const Work& work, int64_t n);
    void compute_many(const Work& work);
    void run_many(int64_t il, const Work& work, int64_t n);
    // The routed groups of a layer through the streamer, and whatever else the layer has besides.
    void stream(int64_t il, const Work& work, int64_t n);
    void stream_few(Streamer::Pass& pass, const Work& work);
    void stream_many(Streamer::Pass& pass, const Work& work);
    void fetch_ahead(Streamer::Pass& pass, int moe_layer, const float* residual, int64_t n);
    void guess(int64_t il, const float* residual);
    void reduce(int64_t il, const Work& work, int64_t n, bool few);
    size_t n_routed_groups() const noexcept { return groups_.size() - (groups_.empty() || groups_.back().routed ? 0 : 1); }
    void reduce_row(int64_t il, int64_t t, int64_t begin, int64_t end, bool few, const Work& work);

    Workspace& workspace_;
    const int64_t n_batch_;
    Region region_;

    // Reserved for the worst layer and batch.
    float* router_logits_ = nullptr;     // [n_batch][n_expert]
    int32_t* ids_ = nullptr;             // [n_batch][k]
    float* weights_ = nullptr;           // [n_batch][k]
    float* shared_weight_ = nullptr;     // [n_batch]
    int32_t* entry_token_ = nullptr;     // [entries]: the token of an entry
    float* entry_weight_ = nullptr;      // [entries of routed experts]: where weights multiply the input
    int32_t* token_entry_ = nullptr;     // [n_batch][k + 1]: the entries of a token, experts ascending, the shared one last
    float* partials_ = nullptr;          // few tokens: [entry][granule][n_embd]; many: [entry][n_embd]
    std::byte* intermediate_ = nullptr;  // many: [entry][granule] quantized rows
    struct ThreadScratch {
        float *gate, *up;
        std::byte* acts;
    };
    std::vector<ThreadScratch> threads_;
    std::vector<Group> groups_;
    struct Task {
        int32_t group;
        int32_t granule;       // or first output tile
        int32_t first, count;  // entries inside the group, or output tiles
    };
    std::vector<Task> tasks_;
    std::vector<Part> parts_;

    // Of streamed layers.
    std::vector<const std::byte*> granules_;  // [group][granule] where it lies
    std::vector<Streamer::Want> wants_;
    std::vector<Streamer::WaveRun> wave_;
    std::vector<float> guess_x_, guess_logits_, guess_weights_;
    std::vector<int32_t> guess_ids_;
    ActSet guess_acts_;
    PassReport report_;

    const Probe* probe_ = nullptr;
    std::mutex probe_mutex_;
    int64_t probe_layer_ = 0, probe_position_ = 0;
};

}  // namespace moepic
