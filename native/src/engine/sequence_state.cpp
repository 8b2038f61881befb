#include "engine/sequence_state.h"

#include <algorithm>
#include <cassert>

#include "model/mixers.h"

namespace moepic {
namespace {

// Memory for slots, unless the least number needs more: the current state, two that a batch writes, one checkpoint.
constexpr size_t kBytes = size_t{256} << 20;
constexpr size_t kLeastSlots = 4, kMostSlots = 16;

}  // namespace

SequenceState::SequenceState(Steps& steps, const Config& config) {
    for (const LayerConfig& layer : config.layers) {
        offsets_.push_back(slot_floats_);
        slot_floats_ += static_cast<size_t>(state_floats(config, layer));
    }
    if (slot_floats_ == 0) return;
    const size_t bytes = slot_floats_ * sizeof(float);
    const size_t n_slots = std::clamp(kBytes / bytes, kLeastSlots, kMostSlots);
    memory_ = steps.reserve(n_slots * bytes, "states of the sequence");
    data_ = reinterpret_cast<float*>(memory_.data());
    slots_.resize(n_slots);
}

void SequenceState::begin(int64_t n, int64_t keep_at) {
    n_legs_ = 0;
    if (is_empty()) return;
    keep_start_ = n > 1 || keep_at == 0;
    const auto add = [&](int64_t from_token, int64_t to_token, int from) {
        const int to = take_slot();
        legs_[n_legs_++] = {from_token, to_token, from, to};
        return to;
    };
    const bool stops = keep_at > 0 && keep_at < n;
    const int before_last = stops ? add(0, keep_at, current_) : current_;
    add(stops ? keep_at : 0, n, before_last);
}

void SequenceState::finish() noexcept {
    if (n_legs_ == 0) return;
    const int64_t first = position();
    if (keep_start_ && current_ >= 0) slots_[static_cast<size_t>(current_)].kept = true;
    for (const device::StateLeg& leg : legs()) slots_[static_cast<size_t>(leg.to)] = {first + leg.end, &leg != &legs().back()};
    current_ = legs().back().to;
    n_legs_ = 0;
}

int64_t SequenceState::nearest(int64_t n) const noexcept {
    if (is_empty()) return n;
    const int slot = find_nearest(n);
    return slot < 0 ? 0 : slots_[static_cast<size_t>(slot)].position;
}

void SequenceState::rewind(int64_t n) noexcept {
    if (is_empty()) return;
    current_ = find_nearest(n);
    for (Slot& slot : slots_) slot.kept = slot.kept && slot.position <= n;
}

int SequenceState::find_nearest(int64_t n) const noexcept {
    int best = -1;
    for (int i = 0; i < static_cast<int>(slots_.size()); ++i) {
        const Slot& slot = slots_[static_cast<size_t>(i)];
        if ((slot.kept || i == current_) && slot.position <= n && (best < 0 || slot.position > slots_[static_cast<size_t>(best)].position))
            best = i;
    }
    return best;
}

bool SequenceState::is_planned(int slot) const noexcept {
    return std::any_of(legs_.begin(), legs_.begin() + static_cast<std::ptrdiff_t>(n_legs_),
                       [&](const device::StateLeg& leg) { return leg.to == slot; });
}

// A free slot, or that of the checkpoint whose loss costs least: going back to a place between it and the next one then takes as many more
// tokens as it lies after the one before it. The newest stays: a prompt just given is what comes back most.
int SequenceState::take_slot() noexcept {
    std::vector<int> kept;  // at most kMostSlots; by position
    for (int i = 0; i < static_cast<int>(slots_.size()); ++i) {
        if (i == current_ || is_planned(i)) continue;
        if (!slots_[static_cast<size_t>(i)].kept) return i;
        kept.push_back(i);
    }
    const auto at = [&](size_t k) { return slots_[static_cast<size_t>(kept[k])].position; };
    std::sort(kept.begin(), kept.end(),
              [&](int a, int b) { return slots_[static_cast<size_t>(a)].position < slots_[static_cast<size_t>(b)].position; });
    assert(kept.size() >= 2);  // kLeastSlots, less the current one and one planned
    size_t worst = 0;
    int64_t least = INT64_MAX;
    for (size_t k = 0; k + 1 < kept.size(); ++k) {
        const int64_t loss = (at(k) - (k ? at(k - 1) : 0)) * (at(k + 1) - at(k));
        if (loss < least) {
            least = loss;
            worst = k;
        }
    }
    slots_[static_cast<size_t>(kept[worst])].kept = false;
    return kept[worst];
}

}  // namespace moepic
