// Keys and values of one sequence, all layers, reserved at once. Positions are written in order and forgotten from the end.
//
// A layer with a window keeps a ring: the window, one batch (whose first token still sees a whole window when its last is stored) and a
// margin, so that a few hundred positions can be taken back. Further back the window's keys are overwritten, and nothing but computing the
// sequence again brings them; the cache knows which positions it still holds.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/steps.h"
#include "model/config.h"
#include "ops/ops.h"

namespace moepic {

class KvCache {
public:
    // Positions that can always be taken back from layers with a window.
    static constexpr int64_t kMargin = 512;

    // n_ctx is rounded up to whole blocks. Throws unsupported when a head size does not suit the type, no_memory.
    KvCache(Steps& steps, const Config& config, ops::KvType type, int64_t n_ctx, int64_t n_batch);
    const ops::KvView& layer(int64_t il) const noexcept { return views_[static_cast<size_t>(il)]; }
    uint64_t bytes() const noexcept { return memory_.size(); }

    // Positions [0, held) can be attended to.
    int64_t held() const noexcept { return held_; }
    // Before n positions from held() on are written, and after: a pass that stops between has overwritten, but added nothing.
    void begin(int64_t n) noexcept;
    void finish(int64_t n) noexcept { held_ += n; }
    // The most of the first n positions that can go on: n, or 0 where a window before n is no longer whole.
    int64_t nearest(int64_t n) const noexcept;
    // Forgets positions from nearest(n) on.
    void rewind(int64_t n) noexcept;

private:
    Memory memory_;
    std::vector<ops::KvView> views_;
    int64_t window_ = 0;             // the widest window of a ring; 0: every layer holds everything
    int64_t ring_ = 0;               // positions of the smallest ring
    int64_t held_ = 0, oldest_ = 0;  // rings hold [oldest, held)
};

}  // namespace moepic
