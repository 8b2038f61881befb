#include "capi/testing/bandwidth.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "base/error.h"
#include "capi/guard.h"
#include "measure/memory.h"

int32_t moepic_test_memory_bandwidth(double* best, double* median, int64_t n_bytes, int32_t n_threads, double seconds) {
    return moepic::guard([&] {
        if (n_bytes < 64 || n_bytes > (int64_t{1} << 40) || n_threads < 0 || !(seconds > 0.0 && seconds <= 60.0)) {
            moepic::fail(moepic::Code::argument,
                         "bandwidth: expected n_bytes from 64 to 2^40, n_threads from 0 and seconds in (0, 60], found ", n_bytes, ", ",
                         n_threads, ", ", seconds);
        }
        moepic::ThreadPool pool(n_threads);
        moepic::measure::MemoryReader memory(pool, n_bytes);
        std::vector<double> rates;
        const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
        do rates.push_back(memory.pass());
        while (std::chrono::steady_clock::now() < end);
        std::sort(rates.begin(), rates.end());
        *best = rates.back();
        *median = rates[rates.size() / 2];
    });
}
