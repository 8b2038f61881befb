#include "measure/machine.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "base/error.h"
#include "measure/file_stream.h"
#include "measure/granules.h"
#include "measure/handing.h"
#include "measure/memory.h"

namespace moepic::measure {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kWindows = 9;  // of each measurement, after one that warms up; odd, so that the median is one of them
constexpr int kStages = 8;

Spread spread_of(std::vector<double> rates) {
    std::sort(rates.begin(), rates.end());
    return {rates[rates.size() / 2], rates.front(), rates.back(), static_cast<int64_t>(rates.size())};
}

// Asks between windows whether to go on, and says how far it is.
class Stages {
public:
    explicit Stages(const MachineOptions& options) : options_(options) {}

    // Calls window(seconds) until all are done.
    template <class Window>
    void run(const char* stage, Window&& window) {
        for (int i = 0; i <= kWindows; ++i) {
            report(stage);
            window(options_.seconds / (kWindows + 1), i > 0);
            ++done_;
        }
        report(stage);
    }

private:
    void report(const char* stage) const {
        if (options_.progress && !options_.progress(stage, done_, kStages * (kWindows + 1))) {
            fail(Code::cancelled, "measure: stopped by the caller");
        }
    }

    const MachineOptions& options_;
    int64_t done_ = 0;
};

// What a stream delivers while something else happens, or nothing does.
template <class Meanwhile>
double rate_while(const FileStream& stream, Meanwhile&& meanwhile) {
    const auto start = Clock::now();
    const uint64_t before = stream.bytes();
    meanwhile();
    const std::chrono::duration<double> took = Clock::now() - start;
    return static_cast<double>(stream.bytes() - before) / took.count();
}

// measure(seconds) in every window.
template <class Measure>
Spread spread_over(Stages& stages, const char* stage, Measure&& measure) {
    std::vector<double> found;
    stages.run(stage, [&](double seconds, bool counts) {
        const double one = measure(seconds);
        if (counts) found.push_back(one);
    });
    return spread_of(std::move(found));
}

Spread read_alone(Stages& stages, const char* stage, FileStream& stream) {
    stream.start();
    return spread_over(stages, stage, [&](double seconds) {
        return rate_while(stream, [&] { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); });
    });
}

// Of rates of transfers that follow each other, the seconds of one: the fastest is the shortest. A window in which none ended says that it
// takes as long at least.
Spread seconds_of(const Spread& rate, double bytes, double window_s) {
    const auto seconds = [&](double bytes_s) { return std::min(bytes / bytes_s, window_s); };
    return {seconds(rate.median), seconds(rate.max), seconds(rate.min), rate.repeats};
}

}  // namespace

MachineRates measure_machine(const MachineOptions& options) {
    constexpr uint64_t kMostMemory = uint64_t{1} << 40;
    if (!(options.seconds > 0.0 && options.seconds <= 3600.0)) {
        fail(Code::argument, "measure: seconds is ", options.seconds, ", expected more than 0 and at most 3600");
    }
    if (options.n_threads < 0 || options.memory_bytes < 4096 || options.memory_bytes > kMostMemory) {
        fail(Code::argument, "measure: expected n_threads from 0 and memory_bytes from 4096 to 2^40, found ", options.n_threads, " and ",
             options.memory_bytes);
    }
    const ops::Isa isa = options.isa < 0 ? ops::best_isa() : static_cast<ops::Isa>(options.isa);
    const ops::Kernels* const kernels = options.isa > 2 ? nullptr : ops::find_kernels(isa);
    if (!kernels) fail(Code::unsupported, "measure: this machine or build has no kernels for instruction set ", options.isa);

    MachineRates rates;
    ThreadPool pool(options.n_threads);
    rates.isa = kernels->name;
    rates.n_threads = pool.size();
    Stages stages(options);
    {
        // The file first: a path that can't be read should not cost the time of the rest.
        FileStream stream(options.path, kSmallPiece, options.strict);
        rates.file_lane = stream.describe();
        rates.file_small = read_alone(stages, "file, small pieces", stream);
    }
    {
        FileStream stream(options.path, kLargePiece, options.strict);
        rates.file_large = read_alone(stages, "file, large pieces", stream);
    }
    {
        FileStream stream(options.path, kSmallPiece, options.strict, 1);
        const Spread rate = read_alone(stages, "file, one at a time", stream);
        rates.file_single_s = seconds_of(rate, FileStream::kPieces * kSmallPiece, options.seconds / (kWindows + 1));
    }
    {
        MemoryReader memory(pool, static_cast<int64_t>(options.memory_bytes));
        rates.memory = spread_over(stages, "memory", [&](double seconds) {
            const auto start = Clock::now();
            std::vector<double> window;
            do window.push_back(memory.pass());
            while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
            return spread_of(std::move(window)).median;
        });
    }
    GranuleWork work(pool, *kernels, options.memory_bytes);
    rates.compute = spread_over(stages, "compute", [&](double seconds) { return work.run(seconds); });
    std::vector<double> beside, read, jobs, handoffs;
    {
        FileStream stream(options.path, kSmallPiece, options.strict);
        stream.start();
        stages.run("file and compute", [&](double seconds, bool counts) {
            double computed = 0.0;
            const double rate = rate_while(stream, [&] { computed = work.run(seconds); });
            if (!counts) return;
            beside.push_back(computed);
            read.push_back(rate);
        });
    }
    rates.compute_together = spread_of(std::move(beside));
    rates.file_together = spread_of(std::move(read));
    rates.landing = spread_over(stages, "landing", [&](double seconds) { return work.land(seconds); });
    stages.run("threads", [&](double seconds, bool counts) {
        const double job = job_s(pool, 0.5 * seconds), handoff = handoff_s(0.5 * seconds);
        if (!counts) return;
        jobs.push_back(job);
        handoffs.push_back(handoff);
    });
    rates.job_s = spread_of(std::move(jobs));
    rates.handoff_s = spread_of(std::move(handoffs));
    return rates;
}

}  // namespace moepic::measure
