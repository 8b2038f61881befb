#include "engine/feed_forward.h"

namespace moepic {

FeedForward::FeedForward(const Model& model) : model_(model), trace_(model.config()) {
    for (int64_t il = 0; il < model.config().n_layer; ++il) {
        const LayerWeights& layer = model.layer(il);
        ActMask mask = act_mask(layer.router) | act_mask(layer.shared_gate);
        each_set(layer, [&](const ExpertSet& set, bool) {
            mask |= ActMask{1} << static_cast<int>(ops::act_kind(set.layout.gate_type));
            mask |= ActMask{1} << static_cast<int>(ops::act_kind(set.layout.up_type));
        });
        masks_.push_back(mask);
    }
}

void FeedForward::begin(int64_t n) {
    batch_ = n;
    if (ExpertService* experts = model_.experts()) experts->begin_tokens(n);
    trace_.begin(n);
}

void FeedForward::force_routing(std::vector<int32_t> ids, std::vector<int32_t> guesses, int64_t n_token) {
    forced_ids_ = std::move(ids);
    forced_guesses_ = std::move(guesses);
    n_forced_ = forced_ids_.empty() ? 0 : n_token;
}

}  // namespace moepic
