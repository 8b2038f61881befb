#include "cache/shape.h"

#include <algorithm>

#include "base/error.h"

namespace moepic::cache {

void validate(const Shape& shape) {
    if (shape.empty()) fail(Code::argument, "cache: the model has no MoE layer, so there is nothing to cache");
    for (size_t il = 0; il < shape.size(); ++il) {
        const LayerShape& layer = shape[il];
        if (layer.n_expert < 1 || layer.n_granule < 1 || layer.granule_bytes < 1) {
            fail(Code::argument, "cache: MoE layer ", il, " has ", layer.n_expert, " experts of ", layer.n_granule, " granules of ",
                 layer.granule_bytes, " bytes; expected at least 1 of each");
        }
    }
}

void validate(const Routing& routing, const Shape& shape) {
    if (routing.n_token < 0 || routing.n_used < 1 || routing.n_layer != static_cast<int>(shape.size()) ||
        routing.ids.size() != static_cast<size_t>(routing.n_token) * routing.n_layer * routing.n_used) {
        fail(Code::argument, "routing: ", routing.n_token, " tokens x ", routing.n_layer, " layers x ", routing.n_used,
             " ids expected for a model of ", shape.size(), " MoE layers, found ", routing.ids.size(), " ids");
    }
    for (int token = 0; token < routing.n_token; ++token) {
        for (int il = 0; il < routing.n_layer; ++il) {
            const auto ids = routing.at(token, il);
            for (size_t i = 0; i < ids.size(); ++i) {
                const bool repeated = ids[i] >= 0 && std::find(ids.begin(), ids.begin() + i, ids[i]) != ids.begin() + i;
                if (ids[i] < -1 || ids[i] >= shape[il].n_expert || repeated) {
                    fail(Code::argument, "routing: token ", token, ", MoE layer ", il, " names expert ", ids[i],
                         repeated ? " twice" : " of ", repeated ? "" : std::to_string(shape[il].n_expert));
                }
            }
        }
    }
}

}  // namespace moepic::cache
