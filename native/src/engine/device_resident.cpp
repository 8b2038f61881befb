#include "engine/device_resident.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace moepic {
namespace {

size_t n_granules_of(const StreamLayer& layer) {
    return static_cast<size_t>(layer.n_expert) * static_cast<size_t>(layer.stored.layout.n_granules);
}

}  // namespace

uint64_t DeviceResident::device_bytes(const std::vector<StreamLayer>& layers) {
    uint64_t granules = 0;
    for (const StreamLayer& layer : layers) granules += n_granules_of(layer);
    return granules * sizeof(const std::byte*) + sizeof(uint64_t);
}

DeviceResident::DeviceResident(const device::Library& library, const std::vector<StreamLayer>& layers) : copied_(library) {
    size_t granules = 0;
    for (const StreamLayer& layer : layers) {
        layers_.push_back({layer.n_expert, static_cast<int>(layer.stored.layout.n_granules), granules});
        granules += n_granules_of(layer);
        most_ids_ = std::max(most_ids_, static_cast<size_t>(ExpertService::kFewTokens) * static_cast<size_t>(layer.n_used));
    }
    n_letters_ = kTokens * layers.size();
    tables_ = device::allocate(library, granules * sizeof(const std::byte*), "tables of resident experts");
    listed_ = device::allocate_host(library, tables_.size(), "tables of resident experts");
    std::memset(listed_.data(), 0, listed_.size());
    ids_ = device::allocate_host(library, n_letters_ * most_ids_ * sizeof(int32_t), "letters");
    flags_ = device::allocate_host(library, n_letters_ * sizeof(uint32_t), "flags of letters");
    std::memset(flags_.data(), 0, flags_.size());
    n_written_ = device::allocate(library, sizeof(uint64_t), "the number of letters");
    told_count_ = device::allocate_host(library, sizeof(uint64_t), "the number of letters");
}

bool DeviceResident::is_whole(int layer, const cache::Residency& residency) {
    Layer& l = layers_[static_cast<size_t>(layer)];
    if (l.version == residency.version()) return l.is_whole;
    l.version = residency.version();
    l.is_compared = false;
    l.is_whole = true;
    for (int expert = 0; l.is_whole && expert < l.n_expert; ++expert) l.is_whole = residency.n_resident(layer, expert) == l.n_granules;
    return l.is_whole;
}

void DeviceResident::bring_table(int layer, const cache::Residency& residency, const DeviceArena& arena,
                                 const device::OwnedStream& stream) {
    Layer& l = layers_[static_cast<size_t>(layer)];
    const std::byte** const listed = listed_.as<const std::byte*>() + l.first;
    // Where other layers' granules come and go, this one's will have stayed.
    for (int i = 0; !l.is_compared && i < l.n_expert * l.n_granules; ++i) {
        const std::byte* const at = arena.slot(residency.find(layer, i / l.n_granules, i % l.n_granules).slot);
        if (listed[i] == at) continue;
        if (l.is_copied) copied_.wait_host();
        l.is_copied = false;
        listed[i] = at;
    }
    l.is_compared = true;
    if (l.is_copied) return;
    stream.copy(table_of(l), listed, static_cast<size_t>(l.n_expert) * static_cast<size_t>(l.n_granules) * sizeof(*listed));
    stream.record(copied_);
    l.is_copied = true;
}

void DeviceResident::tell_count(const device::OwnedStream& stream) {
    if (is_count_told_) return;
    copied_.wait_host();
    *told_count_.as<uint64_t>() = n_begun_;
    stream.copy(n_written_.data(), told_count_.data(), sizeof(uint64_t));
    stream.record(copied_);
    is_count_told_ = true;
}

device::Letters DeviceResident::letters() const {
    return {n_written_.as<uint64_t>(), n_letters_, static_cast<int64_t>(most_ids_), ids_.as<int32_t>(), flags_.as<uint32_t>()};
}

void DeviceResident::drop_last(int n) {
    for (; n > 0; --n) {
        *flag_of(--n_begun_) = 0;  // it may have been written
        waiting_.pop_back();
    }
    is_count_told_ = false;
}

void DeviceResident::drop_all() {
    if (waiting_.empty()) return;
    waiting_.clear();
    is_count_told_ = false;
}

std::optional<DeviceResident::Used> DeviceResident::take() {
    if (waiting_.empty()) return std::nullopt;
    const Waiting oldest = waiting_.front();
    const std::atomic_ref<uint32_t> flag(*flag_of(oldest.number));
    if (flag.load(std::memory_order_acquire) != static_cast<uint32_t>(oldest.number + 1)) return std::nullopt;
    waiting_.pop_front();
    return Used{oldest.layer, oldest.is_decode, {ids_of(oldest.number), static_cast<size_t>(oldest.n_ids)}};
}

}  // namespace moepic
