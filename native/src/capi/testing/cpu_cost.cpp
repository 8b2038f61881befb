#include "capi/testing/cpu_cost.h"

#include "capi/guard.h"
#include "engine/cpu_cost.h"

using namespace moepic;

int32_t moepic_test_cpu_cost(double* expected_s, double bytes_s, double most_bytes_s, const int64_t* bytes, const int32_t* n_tokens,
                             const double* seconds, int32_t n) {
    return guard([&] {
        CpuCost cost(bytes_s, most_bytes_s);
        for (int32_t i = 0; i < n; ++i) {
            expected_s[i] = cost.seconds(bytes[i], n_tokens[i]);
            if (seconds[i] >= 0.0) cost.observe(bytes[i], n_tokens[i], seconds[i]);
        }
    });
}
