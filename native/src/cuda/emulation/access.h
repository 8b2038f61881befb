// What a kernel may touch. Kernels are compiled with a call before each load and store (gcc's outlined kernel-address checks, which want a
// runtime of their own: this one), so a pointer that a GPU could not follow is an error here too: pageable memory of the host, another
// thread's local variables, the far end of an allocation, what was freed. Host threads are not asked.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moepic::simt {

struct Range {
    uintptr_t begin = 0;
    size_t bytes = 0;

    bool holds(uintptr_t at, size_t n) const { return at - begin < bytes && n <= bytes - (at - begin); }
};

// Of the CUDA thread that runs on this thread of the system.
struct Reach {
    Range stack;   // its own local variables
    Range shared;  // the block's
    Range params;  // of the launch; read only, as are the library's constants
    // Allocations that were touched lately, while `generation` is the table's. A kernel reads a few at a time, in turn.
    Range recent[4];
    int oldest = 0;
    uint64_t generation = 0;
};
void set_reach(Reach* reach);  // null: a host thread again
void forget_allocations();     // one is gone: its address may mean something else soon

}  // namespace moepic::simt
