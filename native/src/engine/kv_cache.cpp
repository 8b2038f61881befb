#include "engine/kv_cache.h"

#include <algorithm>

#include "base/error.h"

namespace moepic {
namespace {

// Positions that a layer keeps: all, or those of a ring.
int64_t capacity_of(const LayerConfig& layer, int64_t all, int64_t n_batch) {
    if (layer.window == 0) return all;
    const int64_t ring = (layer.window + n_batch + KvCache::kMargin + ops::kKvRing - 1) / ops::kKvRing * ops::kKvRing;
    return std::min(ring, all);
}

}  // namespace

KvCache::KvCache(Steps& steps, const Config& config, ops::KvType type, int64_t n_ctx, int64_t n_batch) {
    const int64_t capacity = (n_ctx + ops::kKvBlock - 1) / ops::kKvBlock * ops::kKvBlock;
    const int64_t multiple = type == ops::KvType::q8_0 ? 32 : 2;
    const auto place = [&](Carver& carver) {
        views_.clear();
        for (const LayerConfig& layer : config.layers) {
            ops::KvView view{.type = type,
                             .n_head_kv = layer.n_head_kv,
                             .head_dim_k = layer.head_dim_k,
                             .head_dim_v = layer.head_dim_v,
                             .capacity = capacity_of(layer, capacity, n_batch)};
            if (layer.head_dim_k % multiple || layer.head_dim_v % multiple) {
                fail(Code::unsupported, "context: heads of ", layer.head_dim_k, " and ", layer.head_dim_v, " do not suit ",
                     type == ops::KvType::q8_0 ? "Q8_0" : "F16", " keys and values (multiples of ", multiple, " needed; use F16)");
            }
            view.keys = carver.take<std::byte>(ops::kv_bytes(type, layer.n_head_kv, layer.head_dim_k, view.capacity));
            view.values = carver.take<std::byte>(ops::kv_bytes(type, layer.n_head_kv, layer.head_dim_v, view.capacity));
            views_.push_back(view);
        }
    };
    for (const LayerConfig& layer : config.layers) {
        const int64_t held = capacity_of(layer, capacity, n_batch);
        if (held == capacity) continue;
        window_ = std::max(window_, layer.window);
        ring_ = ring_ ? std::min(ring_, held) : held;
    }
    Carver size;
    place(size);
    memory_ = steps.reserve(size.used(), "keys and values");
    Carver carver(memory_.data());
    place(carver);
}

void KvCache::begin(int64_t n) noexcept {
    if (window_) oldest_ = std::max(oldest_, held_ + n - ring_);
}

int64_t KvCache::nearest(int64_t n) const noexcept {
    // The token at position n sees from n - window + 1 on. A chunk begins no earlier.
    const int64_t needed = std::max<int64_t>(0, n + 1 - window_);
    return needed >= oldest_ || n == held_ ? n : 0;
}

void KvCache::rewind(int64_t n) noexcept {
    held_ = nearest(n);
    if (held_ == 0) oldest_ = 0;
}

}  // namespace moepic
