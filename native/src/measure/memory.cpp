#include "measure/memory.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/error.h"

namespace moepic::measure {
namespace {

constexpr int64_t kLineWords = 8;  // a slice is a whole number of cache lines

// Eight independent sums, so that loads and not additions set the pace.
uint64_t sum_slice(const uint64_t* words, int64_t n_words) {
    uint64_t sums[kLineWords] = {};
    for (int64_t i = 0; i < n_words; i += kLineWords) {
        for (int64_t k = 0; k < kLineWords; ++k) sums[k] += words[i + k];
    }
    uint64_t all = 0;
    for (const uint64_t sum : sums) all += sum;
    return all;
}

}  // namespace

MemoryReader::MemoryReader(ThreadPool& pool, int64_t n_bytes)
    : pool_(pool),
      slice_words_(std::max<int64_t>(n_bytes / pool.size() / 8 / kLineWords, 1) * kLineWords),
      buffer_(new uint64_t[static_cast<size_t>(slice_words_ * pool.size())]),
      sums_(static_cast<size_t>(pool.size())) {
    pool_.run(pool_.size(),
              [&](int64_t slice, int) { std::memset(buffer_.get() + slice * slice_words_, 1, static_cast<size_t>(slice_words_) * 8); });
}

double MemoryReader::pass() {
    const auto start = std::chrono::steady_clock::now();
    pool_.run(pool_.size(), [&](int64_t slice, int) {
        sums_[static_cast<size_t>(slice)] = sum_slice(buffer_.get() + slice * slice_words_, slice_words_);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    // Using the sums is also what keeps the compiler from dropping the reads.
    uint64_t sum = 0;
    for (const uint64_t slice : sums_) sum += slice;
    const auto n_words = static_cast<uint64_t>(slice_words_) * sums_.size();
    if (sum != uint64_t{0x0101010101010101} * n_words) fail(Code::internal, "measure: memory changed while it was read");
    return static_cast<double>(n_words * 8) / took.count();
}

}  // namespace moepic::measure
