// What it costs to hand work to other threads, whatever the work is: a job of the engine's thread pool, whose threads spin between jobs,
// and a round trip to a thread that is parked, as a CPU lane's is.
#pragma once

#include "base/thread_pool.h"

namespace moepic::measure {

// Seconds of a job in which every thread takes part and does nothing: median of as many as fit into about `seconds`.
double job_s(ThreadPool& pool, double seconds);

// Seconds until a thread that has been parked for a while answers: the same.
double handoff_s(double seconds);

}  // namespace moepic::measure
