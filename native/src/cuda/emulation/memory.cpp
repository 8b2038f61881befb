// Memory of the emulated device: ordinary memory of exactly the size asked for, entered in the table. What was never written reads as 0xff.
#include <cstdlib>
#include <cstring>

#include "device.h"
#include "sanitizers.h"

namespace {

using namespace moepic::simt;
using moepic::cat;

constexpr size_t kAlignment = 256;                     // of cudaMalloc
constexpr size_t kPageBytes = 4096;                    // where pinned memory begins, so that direct reads may go there
constexpr size_t kMostFilledBytes = size_t{64} << 20;  // beyond, a fill would cost memory that may never be touched

cudaError_t allocate(void** out, size_t bytes, Memory kind) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    if (const cudaError_t result = check_uncaptured("allocating"); result != cudaSuccess) return result;
    *out = nullptr;
    if (bytes == 0) return cudaSuccess;
    Device& device = Device::get();
    if (device.fails_allocation()) return fail_call(cudaErrorMemoryAllocation, "out of memory (asked for by a test)");
    if (kind == Memory::device && !device.fits(bytes)) return fail_call(cudaErrorMemoryAllocation, "out of memory");
    void* data = nullptr;
    if (posix_memalign(&data, kind == Memory::device ? kAlignment : kPageBytes, bytes) != 0)
        return fail_call(cudaErrorMemoryAllocation, "out of memory of the host");
    if (bytes <= kMostFilledBytes) std::memset(data, 0xff, bytes);
    if (kind == Memory::device) close_to_host(data, bytes);
    device.add(data, bytes, kind);
    *out = data;
    return cudaSuccess;
}

cudaError_t release(void* data, Memory kind) {
    if (data == nullptr) return cudaSuccess;
    if (const cudaError_t result = check_uncaptured("freeing"); result != cudaSuccess) return result;
    finish_streams();
    const size_t bytes = Device::get().remove(data, kind);
    if (bytes == SIZE_MAX) return fail_call(cudaErrorInvalidValue, "freeing what was not allocated, or was freed before");
    open_to_host(data, bytes);
    std::free(data);
    return cudaSuccess;
}

}  // namespace

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    *total_bytes = Device::get().options().memory_bytes;
    const size_t used = Device::get().counters().device_bytes;
    *free_bytes = used < *total_bytes ? *total_bytes - used : 0;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** out, size_t bytes) {
    return allocate(out, bytes, Memory::device);
}
cudaError_t cudaFree(void* data) {
    return release(data, Memory::device);
}
cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
    return allocate(out, bytes, Memory::pinned);
}
cudaError_t cudaFreeHost(void* data) {
    return release(data, Memory::pinned);
}

cudaError_t cudaHostRegister(void* data, size_t bytes, unsigned) {
    if (const cudaError_t result = check_device(); result != cudaSuccess) return result;
    if (const cudaError_t result = check_uncaptured("pinning"); result != cudaSuccess) return result;
    if (data == nullptr || bytes == 0) return fail_call(cudaErrorInvalidValue, "pinning nothing");
    Device::get().loiter(reinterpret_cast<uintptr_t>(data));
    if (Device::get().fails_allocation()) return fail_call(cudaErrorMemoryAllocation, "out of memory (asked for by a test)");
    if (Device::get().overlaps(data, bytes))
        return fail_call(cudaErrorHostMemoryAlreadyRegistered, "part of this memory is pinned already");
    Device::get().add(data, bytes, Memory::registered);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* data) {
    if (const cudaError_t result = check_uncaptured("unpinning"); result != cudaSuccess) return result;
    finish_streams();
    if (Device::get().remove(data, Memory::registered) == SIZE_MAX)
        return fail_call(cudaErrorHostMemoryNotRegistered, "unpinning what was not pinned, or from another address");
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void** out, void* host, unsigned) {
    *out = host;
    return cudaSuccess;
}
