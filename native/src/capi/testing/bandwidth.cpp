#include "capi/testing/bandwidth.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "base/error.h"
#include "capi/guard.h"
#include "capi/kernels_of.h"
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

int32_t moepic_test_code_products(double* best, int32_t isa, int32_t n_threads, double seconds) {
    return moepic::guard([&] {
        using Clock = std::chrono::steady_clock;
        if (n_threads < 0 || !(seconds > 0.0 && seconds <= 60.0)) {
            moepic::fail(moepic::Code::argument, "products: expected n_threads from 0 and seconds in (0, 60], found ", n_threads, ", ",
                         seconds);
        }
        const moepic::ops::Kernels& kernels = moepic::kernels_of(isa);
        moepic::ThreadPool pool(n_threads);
        std::vector<int64_t> done(static_cast<size_t>(pool.size()));
        const auto end = Clock::now() + std::chrono::duration<double>(seconds);
        *best = 0.0;
        do {
            constexpr int64_t kRounds = 1 << 16;  // some milliseconds
            std::vector<int32_t> sums(done.size());
            const auto start = Clock::now();
            pool.run(pool.size(), [&](int64_t i, int) { done[i] = kernels.multiply_codes(kRounds, &sums[i]); });
            const std::chrono::duration<double> took = Clock::now() - start;
            int64_t n = 0;
            for (size_t i = 0; i < done.size(); ++i) {
                n += done[i];
                if (sums[i] != static_cast<int32_t>(done[i] / 2)) moepic::fail(moepic::Code::internal, "products: a wrong sum");
            }
            *best = std::max(*best, static_cast<double>(n) / took.count());
        } while (Clock::now() < end);
    });
}
