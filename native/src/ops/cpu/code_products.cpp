// How fast this instruction set multiplies 8-bit codes when nothing has to be fetched or decoded: what the share of a prefill is a share
// of. The same products as in the matmuls, from registers of codes and a few activations in the first-level cache.
#include <array>

#include "ops/cpu/bytes.h"
#include "ops/cpu/kernels.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

// As many sums side by side as there are registers for, beside the codes and what a product goes through.
#if MOEPIC_SIMD_AVX512
constexpr int kTiles = 2, kTokens = 8;
#else
constexpr int kTiles = 1, kTokens = 2;
#endif
constexpr int kColumns = 8;

}  // namespace

int64_t multiply_codes(int64_t rounds, int32_t* sum) {
    alignas(64) std::array<std::array<int8_t, 4 * kColumns>, kTokens> activations;
    for (auto& row : activations) row.fill(1);
    const int8_t* x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = activations[static_cast<size_t>(t)].data();
    const I16x code = i_set(0x01010101);
    I16x acc[kTiles][kTokens];
    for (auto& tile : acc)
        for (auto& token : tile) token = i_set(0);
    constexpr int kMax = 15;  // 4-bit codes, of whose products AVX2 widens the fewest sums
    for (int64_t round = 0; round < rounds; ++round) {
        asm volatile("" ::: "memory");  // the activations may have changed: nothing leaves the loop
        i_dots<kMax, kColumns>(acc, x, [&](int, auto) __attribute__((always_inline)) { return code; });
    }
    *sum = 0;
    for (const auto& tile : acc)
        for (const auto& token : tile) *sum += i_sum_lanes(token);
    return rounds * 2 * 4 * kLanes * kTiles * kTokens * kColumns;
}

}  // namespace moepic::ops::MOEPIC_ISA
