// Small tables that a device reads: written in pinned memory, copied to the device in few copies.
#pragma once

#include <cstddef>
#include <utility>

#include "device/buffer.h"
#include "device/library.h"

namespace moepic {

class Tables {
public:
    Tables() = default;
    // As large as `memory`, the device's half.
    Tables(const device::Library& library, device::DeviceMemory memory)
        : host_(device::allocate_host(library, memory.size(), "tables of a layer")), device_(std::move(memory)) {}

    // Forgets what was written. Not before the last upload has ended.
    void clear() noexcept { used_ = uploaded_ = 0; }
    // Room for `count` values, to be written before upload().
    template <class T>
    T* take(size_t count) noexcept {
        T* out = reinterpret_cast<T*>(host_.data() + used_);
        used_ += bytes_of<T>(count);
        return out;
    }
    template <class T>
    static constexpr size_t bytes_of(size_t count) noexcept {
        return (count * sizeof(T) + 63) / 64 * 64;
    }
    // Where the device finds what take() gave.
    template <class T>
    const T* on_device(const T* host) const noexcept {
        return reinterpret_cast<const T*>(device_.data() + (reinterpret_cast<const std::byte*>(host) - host_.data()));
    }
    // What was taken since the last upload goes to the device, in the stream's order.
    void upload(const device::OwnedStream& stream) {
        if (used_ > uploaded_) stream.copy(device_.data() + uploaded_, host_.data() + uploaded_, used_ - uploaded_);
        uploaded_ = used_;
    }

private:
    device::HostMemory host_;
    device::DeviceMemory device_;
    size_t used_ = 0, uploaded_ = 0;
};

}  // namespace moepic
