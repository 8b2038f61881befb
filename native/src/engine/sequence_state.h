// What one sequence keeps beside keys and values: the states of layers that fold the past into a fixed size (delta nets, short
// convolutions).
//
// Such a state can't be cut back as a KV cache can, only kept. So whole states, all layers together, lie in slots, each known by the number
// of tokens it has seen. One slot is current. A batch reads it and writes others, which count only once the batch is finished; a batch that
// fails leaves everything as it was. Some slots stay behind as checkpoints, to go back to:
//   where a batch of several tokens began (the end of an answer, before the next prompt; between the batches of a long prompt), and
//   where the caller asks inside a batch: before the last token of a prompt, which is where an answer is generated anew from.
// Memory is reserved at once. When slots run out, the checkpoint goes whose loss costs least to recompute; never the newest.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/steps.h"
#include "model/config.h"

namespace moepic {

class SequenceState {
public:
    SequenceState(Steps& steps, const Config& config);

    // No layer of the model has a state: positions are then anybody's, and begin and finish do nothing.
    bool is_empty() const noexcept { return slots_.empty(); }
    int64_t position() const noexcept { return current_ < 0 ? 0 : slots_[static_cast<size_t>(current_)].position; }
    uint64_t bytes() const noexcept { return memory_.size(); }

    // Plan a batch of n tokens from position() on, which is to leave a checkpoint after its first `keep_at` tokens (below n; negative:
    // none).
    void begin(int64_t n, int64_t keep_at);
    // The batch has been computed: its last state is current.
    void finish() noexcept;

    // Tokens of the batch lead from one slot to another; a slot below 0 is the beginning of a sequence, all zeros.
    std::span<const device::StateLeg> legs() const noexcept { return {legs_.data(), n_legs_}; }
    // The states of layer il, model/mixers.h says of how many floats, for steps that find the legs of the batch in `place`.
    device::StateSlots slots(int64_t il, const device::PassPlace* place) const noexcept {
        return {place, static_cast<int>(n_legs_), data_ + offsets_[static_cast<size_t>(il)], static_cast<int64_t>(slot_floats_)};
    }

    // The latest position, at most n, that rewind(n) can go back to.
    int64_t nearest(int64_t n) const noexcept;
    // Go back to nearest(n) and forget the checkpoints beyond n.
    void rewind(int64_t n) noexcept;

private:
    struct Slot {
        int64_t position = 0;
        bool kept = false;  // a checkpoint; otherwise free unless current
    };
    int find_nearest(int64_t n) const noexcept;
    int take_slot() noexcept;
    bool is_planned(int slot) const noexcept;

    Memory memory_;
    float* data_ = nullptr;
    size_t slot_floats_ = 0;
    std::vector<size_t> offsets_;  // of layers, in floats
    std::vector<Slot> slots_;
    int current_ = -1;
    std::array<device::StateLeg, 2> legs_{};
    size_t n_legs_ = 0;
    bool keep_start_ = false;
};

}  // namespace moepic
