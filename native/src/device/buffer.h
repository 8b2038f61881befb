// Owners of what the table hands out: memory, streams, events. Moved, not copied; destroyed in any order, on any thread that has opened the
// device, before the library (which stays open). Every failure is an Error that names what it was for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "device/library.h"

namespace moepic::device {

template <class Handle, void (*Api::*Free)(Handle)>
class Owned {
public:
    Owned() = default;
    Owned(const Library& library, Handle handle) noexcept : library_(&library), handle_(handle) {}
    ~Owned() {
        if (handle_ != nullptr) (library_->api().*Free)(handle_);
    }
    Owned(Owned&& other) noexcept { swap(other); }
    Owned& operator=(Owned&& other) noexcept {
        Owned(std::move(other)).swap(*this);
        return *this;
    }

    Handle get() const noexcept { return handle_; }
    explicit operator bool() const noexcept { return handle_ != nullptr; }

protected:
    void swap(Owned& other) noexcept {
        std::swap(library_, other.library_);
        std::swap(handle_, other.handle_);
    }
    const Library* library_ = nullptr;
    Handle handle_ = nullptr;
};

// A region of bytes: of the device, pinned and mapped, or the caller's own while it is pinned.
template <void (*Api::*Free)(void*)>
class OwnedBytes : public Owned<void*, Free> {
public:
    OwnedBytes() = default;
    OwnedBytes(const Library& library, void* data, size_t bytes) noexcept : Owned<void*, Free>(library, data), bytes_(bytes) {}

    std::byte* data() const noexcept { return static_cast<std::byte*>(this->get()); }
    size_t size() const noexcept { return this->get() != nullptr ? bytes_ : 0; }
    template <class T>
    T* as() const noexcept {
        return static_cast<T*>(this->get());
    }

private:
    size_t bytes_ = 0;
};

using DeviceMemory = OwnedBytes<&Api::release>;
using HostMemory = OwnedBytes<&Api::release_host>;  // one address on both sides
using PinnedRange = OwnedBytes<&Api::unpin>;        // of memory that must outlive it

// Zero bytes give an empty owner. `what` is for the message: "device: allocating the expert arena (3.00 GiB): out of memory".
DeviceMemory allocate(const Library& library, size_t bytes, const char* what);
HostMemory allocate_host(const Library& library, size_t bytes, const char* what);
PinnedRange pin(const Library& library, std::span<std::byte> range, const char* what);

class OwnedEvent : public Owned<Event, &Api::free_event> {
public:
    OwnedEvent() = default;
    explicit OwnedEvent(const Library& library);
    bool is_done() const;  // true if never recorded
    void wait_host() const;
};

using OwnedGraph = Owned<Graph, &Api::free_graph>;

class OwnedStream : public Owned<Stream, &Api::free_stream> {
public:
    OwnedStream() = default;
    explicit OwnedStream(const Library& library, int32_t priority = 0);
    void synchronize() const;
    void record(const OwnedEvent& event) const;
    void wait(const OwnedEvent& event) const;
    void copy(void* to, const void* from, size_t bytes) const;
    void clear(void* data, size_t bytes) const;
    // What `give` gives this stream, which does not run yet; see Api::begin_capture. What give throws is thrown on.
    OwnedGraph capture(const std::function<void()>& give) const;
    void launch(const OwnedGraph& graph) const;
};

}  // namespace moepic::device
