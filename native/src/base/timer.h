// How exactly a thread sleeps. Linux may end a sleep some 50 us late to wake several threads at once, which is as long as a copy of a
// granule.
#pragma once

namespace moepic {

// The calling thread's sleeps end as promptly as the kernel can (measured: 20 us late instead of 70). For threads that emulate a duration.
void sleep_precisely() noexcept;

}  // namespace moepic
