// For tests only: what the emulated device has, and what shall go wrong. libmoepic_simt.so exports these two beside the table of api.h.
#pragma once

#include <cstdint>

namespace moepic::device {

struct SimtOptions {
    uint64_t memory_bytes = uint64_t{4} << 30;  // of the device; more is refused
    uint64_t seed = 1;                          // of the order of blocks and threads, and of delays
    int32_t n_threads = 2;                      // that share the blocks of a grid; at least 1
    int32_t most_delay_us = 0;                  // copies, launches and pinning begin up to this late, each by its own random time
    // The n-th call from now on fails, once: 1 is the next. 0: none does.
    int32_t failing_allocation = 0, failing_copy = 0, failing_launch = 0;
    int32_t starving_launch = 0;  // as a driver that has no memory left for a kernel's code or stacks
};

struct SimtCounters {
    uint64_t device_bytes, pinned_bytes;  // allocated now; the caller's memory that is pinned counts as pinned
    int64_t n_launches, n_copies;         // since the last moepic_simt_set_options
};

}  // namespace moepic::device

#pragma GCC visibility push(default)
extern "C" {
// Not while work is in flight. Forgets a failure that all later calls would otherwise repeat, as a new process would.
void moepic_simt_set_options(const moepic::device::SimtOptions* options);
void moepic_simt_counters(moepic::device::SimtCounters* out);
}
#pragma GCC visibility pop
