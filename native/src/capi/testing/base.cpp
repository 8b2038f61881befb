#include "capi/testing/base.h"

#include <chrono>
#include <thread>

#include "base/thread_pool.h"
#include "capi/guard.h"
#include "expert/granule.h"

using namespace moepic;

int32_t moepic_test_pool(int32_t n_threads, int64_t n_tasks, int64_t n_few, int64_t rounds, int32_t sleep_us, int64_t* counts) {
    return guard([&] {
        ThreadPool pool(n_threads);
        for (int64_t round = 0; round < rounds; ++round) {
            // Plain increments: a task that runs twice, or after its job ended, is a race that ThreadSanitizer sees.
            pool.run(round % 2 ? n_few : n_tasks, [&](int64_t task, int) {
                if (sleep_us > 0 && (task + round) % 7 == 0) std::this_thread::sleep_for(std::chrono::microseconds(sleep_us));
                ++counts[task];
            });
        }
    });
}

int64_t moepic_test_granule(int64_t n_ff, uint32_t down_type) {
    const TypeInfo* info = find_type(down_type);
    return info ? default_granule(n_ff, info->type) : -1;
}
