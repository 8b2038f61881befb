#include "capi/testing/trial.h"

#include "capi/guard.h"
#include "engine/trial.h"

using namespace moepic;

int32_t moepic_test_trial(moepic_test_verdict* verdicts, const double* seconds, const double* missing_bytes, const double* extra_s,
                          int32_t n) {
    return guard([&] {
        Trial trial;
        const auto look = [&] { return moepic_test_verdict{trial.cost(), trial.is_on(), trial.is_trying(), trial.n_switched_off()}; };
        for (int32_t i = 0; i < n; ++i) {
            verdicts[i] = look();
            trial.observe(seconds[i] + (trial.is_on() ? extra_s[i] : 0.0), missing_bytes[i]);
        }
        verdicts[n] = look();
    });
}
