#include "engine/kv_cache.h"

#include "base/error.h"

namespace moepic {

KvCache::KvCache(const Config& config, ops::KvType type, int64_t n_ctx) {
    const int64_t capacity = (n_ctx + ops::kKvBlock - 1) / ops::kKvBlock * ops::kKvBlock;
    const int64_t multiple = type == ops::KvType::q8_0 ? 32 : 2;
    const auto place = [&](Carver& carver) {
        views_.clear();
        for (const LayerConfig& layer : config.layers) {
            ops::KvView view{.type = type,
                             .n_head_kv = layer.n_head_kv,
                             .head_dim_k = layer.head_dim_k,
                             .head_dim_v = layer.head_dim_v,
                             .capacity = capacity};
            if (layer.head_dim_k % multiple || layer.head_dim_v % multiple) {
                fail(Code::unsupported, "context: heads of ", layer.head_dim_k, " and ", layer.head_dim_v, " do not suit ",
                     type == ops::KvType::q8_0 ? "Q8_0" : "F16", " keys and values (multiples of ", multiple, " needed; use F16)");
            }
            view.keys = carver.take<std::byte>(ops::kv_bytes(type, layer.n_head_kv, layer.head_dim_k, capacity));
            view.values = carver.take<std::byte>(ops::kv_bytes(type, layer.n_head_kv, layer.head_dim_v, capacity));
            views_.push_back(view);
        }
    };
    Carver size;
    place(size);
    region_ = Region(size.used(), "keys and values");
    Carver carver(region_.data());
    place(carver);
}

}  // namespace moepic
