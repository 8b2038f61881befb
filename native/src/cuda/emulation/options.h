// For tests only: what the emulated device has, and what shall go wrong. The emulated library exports these beside the table of api.h.
#pragma once

#include <cstdint>

namespace moepic::simt {

struct Options {
    uint64_t memory_bytes = uint64_t{4} << 30;  // of the device; more is refused
    uint64_t seed = 1;                          // of the order of blocks and threads, and of delays
    int32_t n_threads = 2;                      // that share the blocks of a grid
    int32_t most_delay_us = 0;                  // copies and launches begin up to this late, each by its own random time
    // The n-th call from now on fails, once: 1 is the next. 0: none does.
    int32_t failing_allocation = 0, failing_copy = 0, failing_launch = 0;
};

struct Counters {
    uint64_t device_bytes, pinned_bytes;  // allocated now; the caller's memory that is pinned counts as pinned
    int64_t n_launches, n_copies;         // since the last set_options
};

}  // namespace moepic::simt

#pragma GCC visibility push(default)
extern "C" {
// Not while work is in flight. Forgets a failure that all later calls would otherwise repeat, as a new process would.
void moepic_simt_set_options(const moepic::simt::Options* options);
void moepic_simt_counters(moepic::simt::Counters* out);
}
#pragma GCC visibility pop
