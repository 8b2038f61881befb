// A link that is emulated: copies memory into frames no faster than a stated bandwidth and no sooner than a stated latency, one copy after
// the other as a DMA engine does. For tests and for studies of GPU machines on machines without one; describe() always says "emulated".
#pragma once

#include <memory>
#include <vector>

#include "transfer/lane.h"

namespace moepic::transfer {

struct LinkLaneOptions {
    std::vector<std::span<const std::byte>> sources;  // source i of a Piece; they outlive the lane
    uint64_t frame_bytes = 0;                         // payload of the longest transfer
    int max_pieces = 0;
    int n_frames = 16;
    double bytes_s = 0.0;    // > 0; a copy that memory makes slower than this is what it is, and rate() says so
    double latency_s = 0.0;  // from the start of a transfer to its first byte; >= 0
};

std::unique_ptr<Lane> open_link_lane(const LinkLaneOptions& options, Lane::OnReady on_ready);

}  // namespace moepic::transfer
