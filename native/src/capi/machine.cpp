// moepic_machine: measure what plans are made from.
#include "measure/machine.h"

#include <cstdio>

#include "capi/handles.h"

using namespace moepic;

namespace {

moepic_spread spread_of(const measure::Spread& spread) {
    return {spread.median, spread.min, spread.max, spread.repeats};
}

}  // namespace

void moepic_machine_options_init(moepic_machine_options* options) {
    if (options) *options = {sizeof(moepic_machine_options), 0, -1, 0, uint64_t{1} << 30, 3.0, nullptr, nullptr};
}

int32_t moepic_machine_measure(moepic_machine* out, const char* path, const moepic_machine_options* given) {
    return guard([&] {
        need(out, "out");
        need(path, "path");
        const moepic_machine_options o = read_options(given, moepic_machine_options_init, "moepic_machine_options");
        measure::MachineOptions options;
        options.path = path;
        options.n_threads = o.n_threads;
        options.isa = o.isa;
        options.strict = o.strict != 0;
        options.memory_bytes = o.memory_bytes ? o.memory_bytes : uint64_t{1} << 30;
        options.seconds = o.seconds == 0.0 ? 3.0 : o.seconds;
        if (o.progress) {
            options.progress = [&o](const char* stage, int64_t done, int64_t total) {
                return o.progress(stage, static_cast<uint64_t>(done), static_cast<uint64_t>(total), o.user) == 0;
            };
        }
        const measure::MachineRates rates = measure::measure_machine(options);
        moepic_machine machine{};
        machine.n_threads = rates.n_threads;
        machine.isa = rates.isa;
        machine.memory = spread_of(rates.memory);
        machine.compute = spread_of(rates.compute);
        machine.file_small = spread_of(rates.file_small);
        machine.file_large = spread_of(rates.file_large);
        machine.file_together = spread_of(rates.file_together);
        machine.compute_together = spread_of(rates.compute_together);
        machine.landing = spread_of(rates.landing);
        machine.file_single_s = spread_of(rates.file_single_s);
        machine.job_s = spread_of(rates.job_s);
        machine.handoff_s = spread_of(rates.handoff_s);
        machine.small_bytes = measure::kSmallPiece;
        machine.large_bytes = measure::kLargePiece;
        std::snprintf(machine.file_lane, sizeof machine.file_lane, "%s", rates.file_lane.c_str());
        write_info(out, machine, "moepic_machine");
    });
}
