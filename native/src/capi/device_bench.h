// A device for testing/: one stream, and arrays of the caller's that live on the device for the time of a call.
#pragma once

#include <cstring>
#include <deque>

#include "device/buffer.h"
#include "ops/ops.h"

namespace moepic {

// Each array is an allocation of its own size, so that an emulated device notices what reaches beyond it.
class Bench {
public:
    explicit Bench(int device)
        : library_(device::open_library(device == 0 ? device::Kind::emulated : device::Kind::cuda)),
          info_(library_.open(0)),
          stream_(library_) {}

    const device::Library& library() const { return library_; }
    const device::Api& api() const { return library_.api(); }
    device::Stream stream() const { return stream_.get(); }

    // Copied in when called; null stays null.
    template <class T>
    const T* in(const T* from, int64_t n) {
        return place(const_cast<T*>(from), n, false);
    }
    // Copied back by finish().
    template <class T>
    T* in_out(T* both, int64_t n) {
        return place(both, n, true);
    }

    void finish(int32_t code) {
        library_.check(code, "running a step");
        for (const Array& array : arrays_)
            if (array.comes_back) stream_.copy(array.host.data(), array.there.data(), array.host.size());
        stream_.synchronize();
        for (const Array& array : arrays_)
            if (array.comes_back) std::memcpy(array.caller, array.host.data(), array.host.size());
    }

    // Activations of n rows of `cols`, in the kinds for which there is a place; those of finish() as in_out.
    device::Acts acts(void* const (&places)[device::kActKinds], int64_t n, int64_t cols) {
        device::Acts out{};
        for (int kind = 0; kind < device::kActKinds; ++kind) {
            out.stride[kind] = ops::act_bytes(static_cast<ops::ActKind>(kind), cols);
            out.data[kind] = in_out(static_cast<std::byte*>(places[kind]), n * static_cast<int64_t>(out.stride[kind]));
        }
        return out;
    }

private:
    struct Array {
        void* caller;
        device::HostMemory host;
        device::DeviceMemory there;
        bool comes_back;
    };

    template <class T>
    T* place(T* caller, int64_t n, bool comes_back) {
        if (caller == nullptr || n == 0) return nullptr;
        const size_t bytes = static_cast<size_t>(n) * sizeof(T);
        arrays_.push_back({caller, device::allocate_host(library_, bytes, "a test's array"),
                           device::allocate(library_, bytes, "a test's array"), comes_back});
        const Array& array = arrays_.back();
        std::memcpy(array.host.data(), caller, bytes);
        stream_.copy(array.there.data(), array.host.data(), bytes);
        return array.there.as<T>();
    }

    const device::Library& library_;
    device::Info info_;
    device::OwnedStream stream_;
    std::deque<Array> arrays_;
};

}  // namespace moepic
