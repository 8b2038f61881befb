// The kernels that a test asks for by number.
#pragma once

#include "base/error.h"
#include "ops/ops.h"

namespace moepic {

// isa: 0 scalar, 1 AVX2, 2 AVX-512. Error(unsupported) where this machine or build has none.
inline const ops::Kernels& kernels_of(int isa) {
    const ops::Kernels* table = isa >= 0 && isa <= 2 ? ops::find_kernels(static_cast<ops::Isa>(isa)) : nullptr;
    if (table == nullptr) fail(Code::unsupported, "ops: this machine or build has no kernels for instruction set ", isa);
    return *table;
}

}  // namespace moepic
