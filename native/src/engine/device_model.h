// A model on a device: its dense weights there, the view that steps read them by, and the experts that are divided between the device's
// memory, the link and the CPU.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/region.h"
#include "device/buffer.h"
#include "device/library.h"
#include "engine/device_experts.h"
#include "engine/device_tables.h"
#include "engine/model.h"
#include "engine/pinned_strips.h"

namespace moepic {

const device::Library& open_device(DeviceKind kind, const std::string& folder);

class DeviceModel {
public:
    // Reserves room for the weights in `host`, which `view` points into, and makes the view of the device; nothing is copied yet. Throws
    // no_memory.
    DeviceModel(const device::Library& library, const device::Info& info, const Region& host, const WeightsView& view, bool cpu_lane,
                Graphs graphs);

    // Copies the weights, through pinned memory, and those floats of routers that `view` has on the host alone. false from progress
    // cancels.
    void upload(const Region& host, const std::function<bool(uint64_t done, uint64_t total)>& progress);
    // Before start(): the experts' strips, of which at most `limit` bytes (0: no limit) are to be pinned, which is the caller's to begin.
    PinnedStrips& hold(const Region& strips, uint64_t limit);
    // Throws no_memory where the arena does not fit.
    void start(std::vector<StreamLayer> layers, int64_t cache_bytes, const StreamOptions& options);

    // After start(), from any thread that has opened the device: memory for a context. Where the device has none left the expert cache
    // shrinks for it. Throws no_memory.
    device::DeviceMemory allocate(size_t bytes, const char* what) const;
    // The expert cache gives back at least `bytes`, if it has so much, because of `why`, and that is said. False where it has nothing; with
    // strict that it would is an error. Between passes of the calling thread.
    bool make_room(uint64_t bytes, const Error& why) const;

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
    const Graphs graphs_;
    bool strict_ = false;
    device::DeviceMemory memory_;
    Tables router_floats_;  // biases and scales of routers, which the host reads too
    std::vector<LayerWeights> layers_;
    const float *output_norm_ = nullptr, *output_norm_bias_ = nullptr;
    Linear output_;
    std::optional<PinnedStrips> strips_;
    std::unique_ptr<DeviceExperts> experts_;  // last: its copies end before what they read is unpinned
};

}  // namespace moepic
