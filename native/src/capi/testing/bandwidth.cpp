// Sums a buffer with plain loads. Every thread owns one contiguous slice, which it also touches first, so pages lie where they are read.
#include "capi/testing/bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "capi/guard.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kLine = 64;  // bytes; a slice is a whole number of these

// Eight independent sums, so that loads and not additions set the pace.
uint64_t sum_slice(const uint64_t* words, int64_t n_words) {
    uint64_t sums[8] = {};
    for (int64_t i = 0; i < n_words; i += 8) {
        for (int64_t k = 0; k < 8; ++k) sums[k] += words[i + k];
    }
    uint64_t all = 0;
    for (const uint64_t sum : sums) all += sum;
    return all;
}

}  // namespace

int32_t moepic_test_memory_bandwidth(double* best, double* median, int64_t n_bytes, int32_t n_threads, double seconds) {
    return moepic::guard([&] {
        if (n_bytes < kLine || n_bytes > (int64_t{1} << 40) || n_threads < 0 || !(seconds > 0.0 && seconds <= 60.0)) {
            moepic::fail(moepic::Code::argument,
                         "bandwidth: expected n_bytes from 64 to 2^40, n_threads from 0 and seconds in (0, 60], found ", n_bytes, ", ",
                         n_threads, ", ", seconds);
        }
        moepic::ThreadPool pool(n_threads);
        const int64_t n_slices = pool.size();
        const int64_t slice_words = std::max<int64_t>(n_bytes / n_slices / kLine, 1) * kLine / 8;
        const std::unique_ptr<uint64_t[]> buffer(new uint64_t[static_cast<size_t>(slice_words * n_slices)]);
        std::vector<uint64_t> sums(static_cast<size_t>(n_slices));
        pool.run(n_slices,
                 [&](int64_t slice, int) { std::memset(buffer.get() + slice * slice_words, 1, static_cast<size_t>(slice_words) * 8); });

        std::vector<double> rates;
        const auto end = Clock::now() + std::chrono::duration<double>(seconds);
        uint64_t check = 0;
        do {
            const auto start = Clock::now();
            pool.run(n_slices, [&](int64_t slice, int) {
                sums[static_cast<size_t>(slice)] = sum_slice(buffer.get() + slice * slice_words, slice_words);
            });
            const std::chrono::duration<double> took = Clock::now() - start;
            rates.push_back(static_cast<double>(slice_words * n_slices * 8) / took.count());
            for (const uint64_t sum : sums) check += sum;
        } while (Clock::now() < end);
        // Using the sums is also what keeps the compiler from dropping the reads.
        const uint64_t expected = uint64_t{0x0101010101010101} * static_cast<uint64_t>(slice_words) * static_cast<uint64_t>(n_slices);
        if (check != expected * rates.size()) moepic::fail(moepic::Code::internal, "bandwidth: the buffer changed while it was read");
        std::sort(rates.begin(), rates.end());
        *best = rates.back();
        *median = rates[rates.size() / 2];
    });
}
