#include "device.h"

#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "random.h"

namespace moepic::simt {
namespace {

thread_local cudaError_t t_code = cudaSuccess;
thread_local std::string t_text;
thread_local bool t_has_device = false;

constexpr size_t kNear = 4096;  // so near behind an allocation, an address was meant to be in it

}  // namespace

Device& Device::get() {
    static Device& device = *new Device;
    return device;
}

SimtOptions Device::options() const {
    const std::lock_guard lock(mutex_);
    return options_;
}

void Device::set_options(const SimtOptions& options) {
    const std::lock_guard lock(mutex_);
    options_ = options;
    counters_.n_launches = counters_.n_copies = 0;
    failure_.clear();
    has_failed_.store(false, std::memory_order_release);
}

SimtCounters Device::counters() const {
    const std::lock_guard lock(mutex_);
    return counters_;
}

bool Device::starves_launch() {
    const std::lock_guard lock(mutex_);
    return counts_down(&SimtOptions::starving_launch);
}

void Device::loiter(uint64_t number) const {
    const SimtOptions now = options();
    if (now.most_delay_us <= 0) return;
    const uint64_t random = random_of(now.seed + number);
    std::this_thread::sleep_for(std::chrono::microseconds(random % (static_cast<uint64_t>(now.most_delay_us) + 1)));
}

bool Device::counts_down(int32_t SimtOptions::* left) {
    return options_.*left > 0 && --(options_.*left) == 0;
}

bool Device::fails_allocation() {
    const std::lock_guard lock(mutex_);
    return counts_down(&SimtOptions::failing_allocation);
}

bool Device::fails_copy() {
    const std::lock_guard lock(mutex_);
    ++counters_.n_copies;
    return counts_down(&SimtOptions::failing_copy);
}

bool Device::fails_launch() {
    const std::lock_guard lock(mutex_);
    ++counters_.n_launches;
    return counts_down(&SimtOptions::failing_launch);
}

void Device::add(void* data, size_t bytes, Memory kind) {
    const std::lock_guard lock(mutex_);
    allocations_[reinterpret_cast<uintptr_t>(data)] = {bytes, kind};
    (kind == Memory::device ? counters_.device_bytes : counters_.pinned_bytes) += bytes;
}

bool Device::overlaps(const void* data, size_t bytes) const {
    const std::lock_guard lock(mutex_);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
    const auto next = allocations_.lower_bound(begin + bytes);
    if (next == allocations_.begin()) return false;
    const auto& [at, allocation] = *std::prev(next);
    return at + allocation.bytes > begin;
}

size_t Device::remove(void* data, Memory kind) {
    const std::lock_guard lock(mutex_);
    const auto found = allocations_.find(reinterpret_cast<uintptr_t>(data));
    if (found == allocations_.end() || found->second.kind != kind) return SIZE_MAX;
    const size_t bytes = found->second.bytes;
    (kind == Memory::device ? counters_.device_bytes : counters_.pinned_bytes) -= bytes;
    allocations_.erase(found);
    forget_allocations();
    return bytes;
}

bool Device::fits(size_t bytes) const {
    const std::lock_guard lock(mutex_);
    return bytes <= options_.memory_bytes && counters_.device_bytes <= options_.memory_bytes - bytes;
}

Range Device::find(uintptr_t at) const {
    const std::lock_guard lock(mutex_);
    const auto next = allocations_.upper_bound(at);
    if (next == allocations_.begin()) return {};
    const auto& [begin, allocation] = *std::prev(next);
    return at - begin < allocation.bytes ? Range{begin, allocation.bytes} : Range{};
}

std::string Device::why_outside(const void* data, size_t bytes) const {
    const std::lock_guard lock(mutex_);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
    const auto next = allocations_.upper_bound(begin);
    if (next != allocations_.begin()) {
        const auto& [at, allocation] = *std::prev(next);
        const size_t offset = begin - at;
        if (offset < allocation.bytes) {
            const size_t left = allocation.bytes - offset;
            if (bytes <= left) return {};
            return cat("ends ", bytes - left, " bytes beyond its allocation of ", allocation.bytes, " bytes");
        }
        if (offset < allocation.bytes + kNear)
            return cat("begins ", offset - allocation.bytes, " bytes behind an allocation of ", allocation.bytes, " bytes");
    }
    return "is neither memory of the device nor pinned memory of the host (never allocated, or freed)";
}

void Device::fail(const std::string& what) {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) return;
    failure_ = what;
    has_failed_.store(true, std::memory_order_release);
}

std::string Device::failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
}

cudaError_t fail_call(cudaError_t code, const std::string& what) {
    t_code = code;
    t_text = what;
    return code;
}

cudaError_t check_device() {
    if (!t_has_device) return fail_call(cudaErrorDeviceUninitialized, "this thread has opened no device");
    if (Device::get().has_failed()) return fail_call(cudaErrorLaunchFailure, Device::get().failure());
    return cudaSuccess;
}

}  // namespace moepic::simt

using namespace moepic::simt;

const char* cudaGetErrorString(cudaError_t error) {
    if (error == t_code && !t_text.empty()) return t_text.c_str();
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorNotReady:
            return "not ready";
        default:
            return "unknown error";
    }
}

cudaError_t cudaGetLastError() {
    const cudaError_t code = t_code;
    t_code = cudaSuccess;
    return code;
}

cudaError_t cudaGetDeviceCount(int* n) {
    *n = 1;
    return cudaSuccess;
}

// The least of the target architectures, so that what a kernel may ask for here is had everywhere.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int device) {
    if (device != 0) return fail_call(cudaErrorInvalidDevice, "the emulation has one device");
    *out = {};
    std::strcpy(out->name, "SIMT emulation");
    out->totalGlobalMem = Device::get().options().memory_bytes;
    out->major = 7;
    out->minor = 5;
    out->multiProcessorCount = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
    out->canMapHostMemory = out->canUseHostPointerForRegisteredMem = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device != 0) return fail_call(cudaErrorInvalidDevice, "the emulation has one device");
    t_has_device = true;
    return cudaSuccess;
}

void moepic_simt_set_options(const SimtOptions* options) {
    Device::get().set_options(*options);
}

void moepic_simt_counters(SimtCounters* out) {
    *out = Device::get().counters();
}
