// A model on a device: its dense weights there, the view that steps read them by, and the experts that are divided between the device's
// memory, the link and the CPU.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/region.h"
#include "device/buffer.h"
#include "device/library.h"
#include "engine/device_experts.h"
#include "engine/device_tables.h"
#include "engine/model.h"

namespace moepic {

const device::Library& open_device(DeviceKind kind, const std::string& folder);

class DeviceModel {
public:
    // Reserves room for the weights in `host`, which `view` points into, and makes the view of the device; nothing is copied yet. Throws
    // no_memory.
    DeviceModel(const device::Library& library, const device::Info& info, const Region& host, const WeightsView& view, bool cpu_lane);

    // Copies the weights, through pinned memory, and those floats of routers that `view` has on the host alone. false from progress
    // cancels.
    void upload(const Region& host, const std::function<bool(uint64_t done, uint64_t total)>& progress);
    // Pins the experts' strips, so that the link can read them: as far as the system grants it, at most `limit` bytes (0: no limit). The
    // rest goes through pinned frames, one more copy by the CPU, which is said; with strict that is an error.
    void pin(const Region& strips, uint64_t limit, bool strict, const std::function<bool(uint64_t done, uint64_t total)>& progress);
    // Throws no_memory where the arena does not fit.
    void start(std::vector<StreamLayer> layers, int64_t cache_bytes, const StreamOptions& options);

    const device::Library& library() const noexcept { return library_; }
    const device::Info& info() const noexcept { return info_; }
    bool has_cpu_lane() const noexcept { return cpu_lane_; }
    WeightsView weights() const noexcept { return {layers_, output_norm_, output_norm_bias_, output_}; }
    const LayerWeights& layer(int64_t il) const noexcept { return layers_[static_cast<size_t>(il)]; }

    // Null where the model has no routed experts.
    DeviceExperts* experts() const noexcept { return experts_.get(); }

private:
    void upload_router_floats(const device::OwnedStream& stream);

    const device::Library& library_;
    const device::Info info_;
    const bool cpu_lane_;
    device::DeviceMemory memory_;
    Tables router_floats_;  // biases and scales of routers, which the host reads too
    std::vector<LayerWeights> layers_;
    const float *output_norm_ = nullptr, *output_norm_bias_ = nullptr;
    Linear output_;
    std::vector<device::PinnedRange> pinned_;
    uint64_t pinned_bytes_ = 0;  // of the strips, from their beginning
    const std::byte* strips_ = nullptr;
    std::unique_ptr<DeviceExperts> experts_;  // last: its copies end before what they read is unpinned
};

}  // namespace moepic
