// What a device needs to run a layer by itself, all of whose experts lie in its memory: a table of where granules lie, from which it lists
// its tasks, and letters in which it says which experts it used. Knows no policy and launches nothing.
//
//   table    [expert][granule] addresses of a layer; copied to the device when it was asked for and has changed
//   letter   mapped memory of one layer's pass: the ids, then a flag. The device numbers letters as it writes them, the host as it begins
//            layers, which is the same order; they are taken in it, long after: a token's have arrived when its logits have
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
    // The layer's table on the device, and what makes it right for what runs behind this point of the stream, which comes behind all
    // earlier passes. The layer is whole.
    const std::byte* const* table(int layer) const { return table_of(layers_[static_cast<size_t>(layer)]); }
    void bring_table(int layer, const cache::Residency& residency, const DeviceArena& arena, const device::OwnedStream& stream);

    bool is_empty() const { return waiting_.empty(); }
    bool has_room(int n_letters) const { return waiting_.size() + static_cast<size_t>(n_letters) <= n_letters_; }
    // Before letters are begun that are written behind this point of the stream: see bring_table().
    void tell_count(const device::OwnedStream& stream);
    // For the ids of a layer, n_ids of them.
    void begin_letter(int layer, int64_t n_ids, bool is_decode) { waiting_.push_back({layer, n_ids, is_decode, n_begun_++}); }
    device::Letters letters() const;
    // The letters that were begun last; nobody writes them any more.
    void drop_last(int n);
    // No kernel that could still write a letter is under way.
    void drop_all();
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
    const std::byte** table_of(const Layer& layer) const { return tables_.as<const std::byte*>() + layer.first; }
    struct Waiting {
        int layer;
        int64_t n_ids;
        bool is_decode;
        uint64_t number;
    };
    // Of the letter that was begun as the number-th, 0 being the first; its flag says number + 1.
    int32_t* ids_of(uint64_t number) const { return ids_.as<int32_t>() + number % n_letters_ * most_ids_; }
    uint32_t* flag_of(uint64_t number) const { return flags_.as<uint32_t>() + number % n_letters_; }

    std::vector<Layer> layers_;
    size_t n_letters_ = 0, most_ids_ = 0;      // letters there is room for, ids of one
    device::HostMemory listed_, ids_, flags_;  // tables as the device has them, or null; letters
    device::DeviceMemory tables_;
    device::OwnedEvent copied_;  // the last table, or count
    std::deque<Waiting> waiting_;
    uint64_t n_begun_ = 0;  // letters
    // The device's count of letters, which is n_begun_ once all are written, and where the host tells it so when it can't know.
    device::DeviceMemory n_written_;
    device::HostMemory told_count_;
    bool is_count_told_ = false;
};

}  // namespace moepic
