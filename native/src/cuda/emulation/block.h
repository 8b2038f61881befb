// One block of a grid: its threads are fibers of one thread of the system, which run until they wait for each other. What they must do
// together is checked on arrival, so that what would hang a GPU, or be undefined there, is an error with a place in the source:
//   - a barrier that some threads reach at another line, or never, because they have left;
//   - a warp collective whose mask lacks the caller, names a lane that has left or does not exist, or that lanes of one mask call as
//     different operations or with different masks.
// Threads start in shuffled order. Shared memory has exactly the size asked for, and begins as 0xff: NaN as floats, -1 as integers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "vector_types.h"

namespace moepic::simt {

using Where = std::source_location;
inline constexpr int kWarp = 32;

struct Grid {
    dim3 grid, block;
    size_t shared_bytes = 0;
    uint64_t seed = 0;
    void (*call)(const void* params) = nullptr;  // runs the kernel in one thread
    std::vector<std::byte> params;
};

// Runs one block to its end on this thread. Empty, or what the kernel did wrong.
std::string run_block(const Grid& grid, uint64_t index);

// Called by kernels.
void* shared_data();
void barrier(Where where);
void sync_warp(uint32_t mask, Where where);
// `value` of lane `source`; all ones if that lane takes no part (undefined on a GPU).
uint64_t shuffle(uint32_t mask, uint64_t value, int source, Where where);
uint32_t ballot(uint32_t mask, bool vote, Where where);
void multiply_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where);
int lane();
[[noreturn]] void trap(Where where);
[[noreturn]] void fail_thread(const std::string& what);
void fence();  // __threadfence: orders for ThreadSanitizer what it orders on a GPU, and more (all fences are one)

}  // namespace moepic::simt

// Of the running thread; the scheduler writes them when it switches.
extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;
