// The feed-forward of one layer on a device. The arithmetic is FeedForward's; what differs is who does what, and when:
//
//   device   router logits -> mailbox; shared expert           residents         what the link brought       reduce -> next layer ..
//   host          waits, fetches ahead | routes, plans, uploads | feeds the link |
//   CPU                                                           computes from the queue's tail, sends partials back
//
// The host sees the router's logits in mapped memory, without synchronising the stream, and routes with the CPU's own code. Everything a
// layer needs to know (tasks, tokens of entries, weights) goes to the device in one copy. A layer of few tokens whose experts are all
// resident goes without: the device routes it and lists its tasks itself (device_resident_pass.cpp).
//
// Of few tokens an entry of the device's lists is a (token, expert, granule): its partials are one row. Of many tokens an entry is a
// (token, expert), and partials of its granules are added up in order as they are computed. Rows of partials are numbered in the order in
// which granules are placed, so what the CPU computes, the tail of the queue, is one run of rows and comes back in one copy.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/thread_pool.h"
#include "device/buffer.h"
#include "device/library.h"
#include "engine/device_cpu_lane.h"
#include "engine/device_experts.h"
#include "engine/device_model.h"
#include "engine/device_tables.h"
#include "engine/feed_forward.h"
#include "engine/workspace.h"

namespace moepic {

class DeviceFeedForward final : public FeedForward {
public:
    // `compute`: the stream of all of a pass's kernels. The workspace's threads are the CPU lane, and route a prompt.
    DeviceFeedForward(const Model& model, Workspace& workspace, const device::OwnedStream& compute, int64_t n_batch);

    void run(int64_t il, const Work& work, int64_t n, int64_t first_position, const Probe& probe) override;
    bool run_whole(int64_t shape, const Probe& probe, const std::function<void()>& give) override;
    void note_whole(double seconds) override;
    uint64_t scratch_bytes() const noexcept override { return memory_.size(); }

private:
    // What the host hears of a layer: pinned and mapped.
    struct Mailbox {
        uint32_t* flag = nullptr;
        uint32_t* unheard = nullptr;  // the flag of letters that another one follows
        float* logits = nullptr;      // [n_batch][n_expert]
        float* guess_logits[2] = {};  // [n_expert], one and two layers ahead
    };
    // What the device makes of few tokens' routing, there: route() and list_tasks().
    struct Listed {
        int32_t *ids, *entry_token, *token_entry;
        float *weights, *entry_weight;
        device::ExpertTask* tasks;
    };
    // A token's launches, and what they count.
    struct WholeGraph {
        device::OwnedGraph launches;
        int64_t shape = -1;
        int64_t n_tasks = 0, n_experts = 0;
    };
    using Group = DeviceCpuLane::Group;
    void place(Carver& device, Carver& mailbox, Carver& host);
    void score(int64_t il, const Work& work, int64_t n);
    void ask(int64_t il, const Work& work, int64_t n);
    void hear();
    void choose(int64_t il, int64_t n, int64_t first_position, const Probe& probe);
    void group(int64_t il, int64_t n);
    // Whether nobody wants to see the routing, or prescribes it.
    bool needs_no_host(const Probe& probe) const { return !probe && !is_forced() && !trace_.is_on(); }
    bool launch_graph(int64_t shape, DeviceExperts::ResidentPass& pass, const std::function<void()>& give);
    bool run_resident(int64_t il, const Work& work, int64_t n, const Probe& probe);
    void launch_resident(const DeviceExperts::ResidentPass& pass, int64_t il, const Work& work, int64_t n);
    void number_entries(int64_t il, int64_t n, std::span<const DeviceExperts::Placed> placed);
    void run_routed(int64_t il, const Work& work, int64_t n, int64_t first_position);
    void run_few(DeviceExperts::Pass& pass, int64_t il, const Work& work, int64_t n);
    void run_many(DeviceExperts::Pass& pass, int64_t il, const Work& work, int64_t n);
    void launch_all(DeviceExperts::Pass& pass, int64_t il, bool is_many, int64_t n_rows, const DeviceCpuLane::Launch& launch);
    void run_shared(int64_t il, const Work& work, int64_t n);
    void list_shared(int64_t n);
    void fetch_ahead(DeviceExperts::Pass& pass, int moe_layer, int64_t n, int64_t first_position);
    void launch_few(const device::ExpertJob& job, DeviceExperts::Range range);
    device::ExpertJob job_of(const ExpertSet& set, const ActSet& acts) const;
    device::ReduceJob reduce_of(int64_t il, const Work& work, int64_t n) const;
    void write_routing(device::ReduceJob& job);
    void check(int32_t code) const { library_.check(code, "computing experts"); }

    const int64_t n_batch_;
    const DeviceModel& device_;
    const device::Library& library_;
    const device::OwnedStream& compute_;
    DeviceExperts* const experts_;
    Workspace& workspace_;
    ThreadPool& pool_;
    double waited_s_ = 0.0, planned_s_ = 0.0;  // of the layer being run

    device::DeviceMemory memory_;
    // On the device.
    float *logits_ = nullptr, *shared_weight_ = nullptr;  // [n_batch][n_expert], [n_batch]
    float *guess_x_ = nullptr, *guess_logits_[2] = {};    // [n_embd], [n_expert]
    ActSet guess_acts_;
    Listed listed_{};
    std::byte* intermediate_ = nullptr;  // [entry] rows, or [entry][granule]
    float* partials_ = nullptr;          // [entry][n_embd]
    std::byte* shared_intermediate_ = nullptr;
    float* shared_partials_ = nullptr;  // few: [token][granule][n_embd]; many: [token][n_embd]

    const DeviceExperts::ResidentPass* whole_ = nullptr;  // the pass of all layers of a token, while it is given
    WholeGraph graph_;
    bool is_warm_ = false;  // a whole token was launched step by step: the driver has loaded its kernels, which a capture may not wait for
    bool was_graph_ = false;  // the last whole token
    double capture_s_ = 0.0;  // of it

    device::HostMemory letters_;
    Mailbox mailbox_;
    uint32_t letter_ = 0;
    device::OwnedEvent posted_;
    Tables tables_;
    // The shared experts' tasks of all layers, for batches of shared_n_ tokens.
    Tables shared_tables_;
    int64_t shared_n_ = 0;
    device::OwnedEvent shared_listed_;
    const int32_t* tokens_ = nullptr;                      // [n_batch]: 0, 1, 2 ..
    std::vector<const device::ExpertTask*> shared_tasks_;  // [layer]
    std::vector<const device::ExpertRun*> shared_runs_;    // [layer]

    // On the host, of the layer being run.
    bool is_shared_with_cpu_ = false;  // its activations went to the CPU lane
    int64_t planned_from_ns_ = 0;
    std::vector<int32_t> ids_;                     // [n][k]
    std::vector<float> weights_;                   // [n][k]
    std::vector<int32_t> distinct_;                // of ids_, ascending
    std::vector<Group> groups_;                    // of distinct_
    std::vector<int32_t> n_entries_;               // of groups_
    std::vector<int32_t> group_of_;                // [expert]
    std::vector<int32_t> entry_token_, entry_of_;  // entries in the order in which experts are placed: the token; [n][k] the entry
    std::vector<float> entry_weight_;
    std::vector<int32_t> first_row_;  // [placed] row of partials_ of its first entry
    std::vector<float> guess_weights_;
    std::vector<int32_t> guess_ids_;
    Region host_memory_;
    DeviceCpuLane cpu_lane_;
};

}  // namespace moepic
