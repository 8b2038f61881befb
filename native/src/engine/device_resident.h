// What a device needs to run a layer by itself, all of whose experts lie in its memory: a table of where granules lie, from which it lists
// its tasks, and letters in which it says which experts it used. Knows no policy and launches nothing.
//
//   table    [expert][granule] addresses of a layer; copied to the device when it was asked for and has changed
//   letter   mapped memory of one pass: the ids, then a flag. Letters are numbered as passes are begun and taken in that order, long
//            after: a token's have arrived when its logits have
//
// Called by one thread at a time, under DeviceExperts' owner_.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "cache/residency.h"
#include "device/buffer.h"
#include "device/library.h"
#include "engine/device_arena.h"
#include "engine/streaming.h"

namespace moepic {

class DeviceResident {
public:
    // Of the tables, on the device.
    static uint64_t device_bytes(const std::vector<StreamLayer>& layers);

    // Throws no_memory.
    DeviceResident(const device::Library& library, const std::vector<StreamLayer>& layers);

    // Whether every granule of the layer is resident.
    bool is_whole(int layer, const cache::Residency& residency);
    // The layer's table on the device, right for what runs behind this point of the stream, which comes behind all earlier passes. The
    // layer is whole.
    const std::byte* const* table(int layer, const cache::Residency& residency, const DeviceArena& arena,
                                  const device::OwnedStream& stream);

    struct Letter {
        int32_t* ids;
        uint32_t* flag;
        uint32_t value;
    };
    bool is_empty() const { return waiting_.empty(); }
    bool is_full() const { return waiting_.size() == n_letters_; }
    // For the ids of a pass: n_ids of them.
    Letter begin_letter(int layer, int64_t n_ids, bool is_decode);
    // The letter that was begun last; nobody writes it any more.
    void drop_last();
    // No kernel that could still write a letter is under way.
    void drop_all() { waiting_.clear(); }
    struct Used {
        int layer;
        bool is_decode;
        std::span<const int32_t> ids;  // until the next letter is begun
    };
    // The oldest letter, if it has arrived.
    std::optional<Used> take();

private:
    // Letters are there for so many tokens. A context runs less than two tokens ahead of its device (DeviceSteps::stage).
    static constexpr size_t kTokens = 4;

    struct Layer {
        int n_expert, n_granules;
        size_t first;          // granule among all
        int64_t version = -1;  // of the residency when `is_whole` was found
        bool is_whole = false;
        bool is_compared = false;  // the table with the residency, as of `version`
        bool is_copied = false;    // what was listed last is on the device
    };
    struct Waiting {
        int layer;
        int64_t n_ids;
        bool is_decode;
        uint64_t number;
    };
    int32_t* ids_of(uint64_t number) const { return ids_.as<int32_t>() + number % n_letters_ * most_ids_; }
    uint32_t* flag_of(uint64_t number) const { return flags_.as<uint32_t>() + number % n_letters_; }
    static uint32_t value_of(uint64_t number) { return static_cast<uint32_t>(number); }

    std::vector<Layer> layers_;
    size_t n_letters_ = 0, most_ids_ = 0;      // letters there is room for, ids of one
    device::HostMemory listed_, ids_, flags_;  // tables as the device has them, or null; letters
    device::DeviceMemory tables_;
    device::OwnedEvent copied_;  // the last table
    std::deque<Waiting> waiting_;
    uint64_t n_begun_ = 0;  // letters; the number of one is its flag's value, so no flag has to be reset before it is used again
};

}  // namespace moepic
