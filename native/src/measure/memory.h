// How fast all threads read memory: the ceiling of everything that computes from it. Sums a buffer with plain loads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/thread_pool.h"

namespace moepic::measure {

class MemoryReader {
public:
    // Every thread owns one contiguous slice, which it also touches first, so pages lie where they are read. Choose n_bytes well above the
    // last-level cache.
    MemoryReader(ThreadPool& pool, int64_t n_bytes);
    // Reads everything once; bytes per second.
    double pass();

private:
    ThreadPool& pool_;
    int64_t slice_words_ = 0;
    std::unique_ptr<uint64_t[]> buffer_;
    std::vector<uint64_t> sums_;
};

}  // namespace moepic::measure
