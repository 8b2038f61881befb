#include "capi/testing/device.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "capi/guard.h"
#include "device/buffer.h"
#include "device/simt_options.h"

namespace {

using namespace moepic;

const device::Library& library_of(int kind, const char* folder = nullptr) {
    if (kind != 0 && kind != 1) fail(Code::argument, "device: kind is 0 (emulation) or 1 (CUDA), found ", kind);
    return device::open_library(kind == 0 ? device::Kind::emulated : device::Kind::cuda, folder != nullptr ? folder : "");
}

template <class Function>
Function* symbol_of_emulation(const char* name) {
    void* handle = dlopen(library_of(0).path().c_str(), RTLD_NOW | RTLD_NOLOAD);
    void* found = handle != nullptr ? dlsym(handle, name) : nullptr;
    if (found == nullptr) fail(Code::internal, "device: the emulated library has no ", name);
    return reinterpret_cast<Function*>(found);
}

}  // namespace

int moepic_test_device_open(int kind, const char* folder, moepic_test_device_info* out) {
    return guard([&] {
        const device::Info info = library_of(kind, folder).open(0);
        std::memcpy(out->name, info.name, sizeof out->name);
        out->major = info.major;
        out->minor = info.minor;
        out->is_emulated = info.is_emulated;
        out->total_bytes = info.total_bytes;
    });
}

int moepic_test_device_round_trip(int kind, const void* in, int64_t n_bytes, int64_t piece, void* out) {
    return guard([&] {
        const device::Library& library = library_of(kind);
        library.open(0);
        const size_t n = static_cast<size_t>(n_bytes), step = static_cast<size_t>(piece);
        const device::DeviceMemory there = device::allocate(library, n, "the way there");
        const device::HostMemory from = device::allocate_host(library, n, "what is sent"),
                                 to = device::allocate_host(library, n, "the mailbox"),
                                 flag = device::allocate_host(library, sizeof(uint32_t), "its flag");
        const device::OwnedStream copies(library, -1), steps(library);
        const device::OwnedEvent landed(library);
        std::memcpy(from.data(), in, n);
        std::atomic_ref<uint32_t> seen(*flag.as<uint32_t>());
        seen.store(0);
        uint32_t round = 0;
        for (size_t at = 0; at < n; at += step) {
            const size_t size = std::min(step, n - at);
            copies.copy(there.data() + at, from.data() + at, size);
            copies.record(landed);
            steps.wait(landed);
            library.check(library->post(there.data() + at, size / 4, to.data() + at, flag.as<uint32_t>(), ++round, steps.get()), "posting");
            while (seen.load(std::memory_order_acquire) != round) std::this_thread::yield();
            std::memcpy(static_cast<std::byte*>(out) + at, to.data() + at, size);
        }
        copies.synchronize();
        steps.synchronize();
    });
}

int moepic_test_simt_options(uint64_t memory_bytes, uint64_t seed, int32_t n_threads, int32_t most_delay_us, int32_t failing_allocation,
                             int32_t failing_copy, int32_t failing_launch, int32_t starving_launch) {
    return guard([&] {
        const device::SimtOptions options{memory_bytes,       seed,         n_threads,      most_delay_us,
                                          failing_allocation, failing_copy, failing_launch, starving_launch};
        symbol_of_emulation<decltype(moepic_simt_set_options)>("moepic_simt_set_options")(&options);
    });
}

int moepic_test_simt_counters(uint64_t* device_bytes, uint64_t* pinned_bytes, int64_t* n_launches, int64_t* n_copies) {
    return guard([&] {
        device::SimtCounters counters{};
        symbol_of_emulation<decltype(moepic_simt_counters)>("moepic_simt_counters")(&counters);
        *device_bytes = counters.device_bytes;
        *pinned_bytes = counters.pinned_bytes;
        *n_launches = counters.n_launches;
        *n_copies = counters.n_copies;
    });
}
