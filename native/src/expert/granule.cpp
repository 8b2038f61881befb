#include "expert/granule.h"

#include <string>

#include "base/error.h"

namespace moepic {

int64_t granule_unit(Type down) noexcept {
    return type_info(down).block_len;
}

int64_t default_granule(int64_t n_ff, Type down) noexcept {
    // Floats may be cut anywhere; 32 keeps cuts on vector and cache-line borders where the width allows it.
    int64_t unit = granule_unit(down);
    if (unit == 1 && n_ff % 32 == 0) unit = 32;
    for (int64_t granule = unit; granule <= n_ff / 2; granule += unit) {
        if (granule >= 256 && n_ff % granule == 0) return granule;
    }
    return n_ff;
}

void check_granule(int64_t granule, int64_t n_ff, Type down) {
    const int64_t unit = granule_unit(down);
    if (granule > 0 && granule <= n_ff && n_ff % granule == 0 && granule % unit == 0) return;
    std::string legal;
    int shown = 0;
    for (int64_t g = unit; g <= n_ff && shown < 12; g += unit) {
        if (n_ff % g == 0 && ++shown) legal += (legal.empty() ? "" : ", ") + std::to_string(g);
    }
    fail(Code::argument, "granule: ", granule, " neurons do not cut a width of ", n_ff, " with ", type_info(down).name,
         " down projections (blocks of ", unit, "); legal: ", legal);
}

}  // namespace moepic
