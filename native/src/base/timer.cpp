#include "base/timer.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif

namespace moepic {

void sleep_precisely() noexcept {
#ifdef __linux__
    ::prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);  // nanoseconds; where it is refused, sleeps stay as they were
#endif
}

}  // namespace moepic
