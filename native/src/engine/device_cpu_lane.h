// The CPU's part in a layer on a device: granules from the tail of the queue, computed where they lie in host memory by the pool's threads
// while the pass's thread feeds the link, and what comes of them sent back in one copy.
//
// Rows of partials are numbered in the order in which granules are placed, so what the CPU computes is the last of them. Of few tokens a
// row is an entry's partial of one granule. Of a prompt it is an entry's sum over granules: threads share an expert, each computes a
// granule into a buffer of its own, and they add in the granules' order.
//
// Memory that the device reads and writes, so pinned: the activations of a batch, and rows, of a prompt as many as fit an eighth of the
// frames' bytes. The CPU takes no more than that, which is the tail, where an expert has few tokens.
//
// Launches no kernels of experts; who takes what is DeviceExperts' to say.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "device/buffer.h"
#include "engine/acts.h"
#include "engine/device_experts.h"
#include "engine/workspace.h"
#include "expert/granule_math.h"

namespace moepic {

class DeviceCpuLane {
public:
    // A routed expert of the batch and its tokens.
    struct Group {
        int32_t expert;
        int32_t first_entry, n_entries;
    };
    // The routed experts of a layer, as DeviceFeedForward has them.
    struct Layer {
        const ExpertSet* set = nullptr;  // in host memory
        bool is_many = false;
        std::span<const Group> groups;         // [want]
        const int32_t* entry_token = nullptr;  // [entry] row of the activations
        const float* entry_weight = nullptr;   // [entry] on the input; null: none
        std::span<const int32_t> first_row;    // [placed] row of its first entry
        int64_t n_rows = 0;
    };
    using Launch = std::function<void(DeviceExperts::Range)>;

    DeviceCpuLane(const Model& model, Workspace& workspace, int64_t n_batch);
    // Its memory. Run once without to learn the sizes; nothing where the model has no CPU lane.
    void place(Carver& pinned, Carver& host);

    // The batch's activations, of the kinds that experts want, to where the CPU reads them: behind what the stream holds.
    void send(const Acts& acts, int64_t n, const device::OwnedStream& stream) const;
    // Threads that compute, and how many entries of a prompt they have room for.
    int n_threads() const { return std::max(1, workspace_.pool().size() - 1); }
    int64_t most_entries() const { return n_rows_; }

    // Works the queue off: the calling thread gives the link what it should have and launches its kernels, the others compute. Where there
    // are none, it does both. Then sends back to `partials` what was computed.
    void share(DeviceExperts::Pass& pass, const Layer& layer, const Launch& launch, float* partials, const device::OwnedStream& stream);

private:
    // Entries of an expert computed together: what they need of gate and up stays in the second-level cache.
    static constexpr int32_t kEntryBlock = 64;
    static constexpr uint64_t kFramesPerRows = 8;  // bytes of frames for each of rows

    struct Thread {
        GranuleScratch granule;
        std::byte* intermediate;
        float* sums;  // [kEntryBlock][n_embd]
    };
    void compute(DeviceExperts::Pass& pass, const Layer& layer, int placed, int thread);
    // Rows before it have no place here: the pass leaves them to the link.
    int64_t first_row(const Layer& layer) const { return std::max<int64_t>(0, layer.n_rows - n_rows_); }

    const Model& model_;
    Workspace& workspace_;
    const int64_t n_batch_, n_embd_;
    Acts acts_{};                  // [n_batch] rows
    uint32_t* unheard_ = nullptr;  // the flag of letters that another one follows
    float* returned_ = nullptr;    // [n_rows][n_embd]: the last rows of a layer
    int64_t n_rows_ = 0;
    std::unique_ptr<std::atomic<int32_t>[]> n_added_;  // [n_rows] of a block of entries, at its first row: granules that its sums hold
    std::vector<Thread> threads_;
};

}  // namespace moepic
