// Keys and values of one sequence, all layers, reserved at once. Positions are written in order and forgotten from the end.
#pragma once

#include <cstdint>
#include <vector>

#include "base/region.h"
#include "model/config.h"
#include "ops/ops.h"

namespace moepic {

class KvCache {
public:
    // n_ctx is rounded up to whole blocks. Throws unsupported when a head size does not suit the type, no_memory.
    KvCache(const Config& config, ops::KvType type, int64_t n_ctx);
    const ops::KvView& layer(int64_t il) const noexcept { return views_[static_cast<size_t>(il)]; }
    uint64_t bytes() const noexcept { return region_.size(); }

private:
    Region region_;
    std::vector<ops::KvView> views_;
};

}  // namespace moepic
