// The granule: how many neurons of an expert's intermediate width are one unit of residency, movement and work. Pure arithmetic.
#pragma once

#include <cstdint>

#include "quant/types.h"

namespace moepic {

// Smallest number of neurons a cut may be a multiple of: the block length of `down`, whose rows are cut.
int64_t granule_unit(Type down) noexcept;

// The granule of a set of experts: the smallest divisor of n_ff that is a multiple of the unit and at least 256 neurons; n_ff itself where
// there is none. 256 neurons keep a granule near a megabyte on real shapes, so that its partial result costs 1 to 2 % of its bytes.
// It depends on the model alone, never on the file's cut, budget or machine: partial sums are taken per granule, so it decides the
// last bits of the result. convert/granule.py has the same rule.
int64_t default_granule(int64_t n_ff, Type down) noexcept;

// Checks a granule asked for; throws Error(argument) with the legal ones.
void check_granule(int64_t granule, int64_t n_ff, Type down);

}  // namespace moepic
