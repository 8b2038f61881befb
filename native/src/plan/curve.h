// What one layer can do with each share of the budget: the least time of its recorded tokens, and the residency that has it.
//
// Found by walking, one granule at a time, from nothing to everything: what saves most comes next, with swaps of granules at regular
// places. The time a walk goes by has its corners rounded, so that it still sees a slope where a window hides all of a token's load. Small
// models are walked back as well (what is missed least goes next), by the true time too; tiny ones by more roundings, and searched with a
// beam. At each place the best of all counts. The model's budget plays no part, so a larger one chooses from the same curves.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/problem.h"
#include "plan/samples.h"

namespace moepic::plan {

struct LayerCurve {
    std::vector<double> time_s;                   // [units] of all recorded tokens together, not increasing
    std::vector<std::vector<int32_t>> residents;  // [units][expert] granules
};

// For as many units of `unit` bytes as hold the layer.
LayerCurve layer_curve(const Problem& problem, const Samples& samples, size_t layer, bool with_cpu, int64_t unit);

}  // namespace moepic::plan
