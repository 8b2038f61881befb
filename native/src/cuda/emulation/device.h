// What the files behind cuda_runtime.h share: the one emulated device, its failures, and its table of allocations.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "access.h"
#include "base/error.h"
#include "cuda_runtime.h"
#include "device/simt_options.h"

namespace moepic::simt {

using device::SimtCounters, device::SimtOptions;

enum class Memory { device, pinned, registered };  // ours, ours for both sides, the caller's

class Device {
public:
    static Device& get();  // lives as long as the process: streams may outlast every static

    SimtOptions options() const;
    void set_options(const SimtOptions& options);
    SimtCounters counters() const;

    // Is this the call that shall fail? Counts calls.
    bool fails_allocation();
    bool fails_copy();
    bool fails_launch();
    bool starves_launch();

    // Late by a random time, if a test wants that; `number` chooses it.
    void loiter(uint64_t number) const;

    void add(void* data, size_t bytes, Memory kind);
    bool overlaps(const void* data, size_t bytes) const;
    size_t remove(void* data, Memory kind);  // its size; no such allocation: SIZE_MAX
    bool fits(size_t bytes) const;
    Range find(uintptr_t at) const;  // the allocation that holds the byte; empty: none
    // Empty if [data, data + bytes) lies inside one allocation, else why not.
    std::string why_outside(const void* data, size_t bytes) const;

    // The first failure of work that ran; all later calls repeat it.
    void fail(const std::string& text);
    bool has_failed() const { return has_failed_.load(std::memory_order_acquire); }
    std::string failure() const;

private:
    struct Allocation {
        size_t bytes;
        Memory kind;
    };
    bool counts_down(int32_t SimtOptions::* left);

    mutable std::mutex mutex_;  // of all below
    SimtOptions options_;
    SimtCounters counters_{};
    std::map<uintptr_t, Allocation> allocations_;
    std::string failure_;
    std::atomic<bool> has_failed_{false};
};

// Makes `text` what cudaGetErrorString says to this thread, and returns the code.
cudaError_t fail_call(cudaError_t code, const std::string& text);
// What every call begins with: cudaSuccess if this thread has chosen its device and no work has failed.
cudaError_t check_device();

void finish_streams();  // waits for all work, as cudaFree does

// What every call begins with that CUDA forbids while the calling thread captures a stream; the capture is then lost.
cudaError_t check_uncaptured(const char* call);

}  // namespace moepic::simt
