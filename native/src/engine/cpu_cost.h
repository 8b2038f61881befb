// What a granule computed where it lies costs a thread of the CPU, as measured: a rate in bytes of the granule for every power of two of
// tokens that share it. Few tokens are bound by reading the granule, many by multiplying; where one turns into the other depends on type,
// kernels and machine, so no formula is fitted: what was measured for one number of tokens says nothing about eight times as many.
//
// Pure: seconds come from the caller, measured while the other threads and the link work too.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

namespace moepic {

class CpuCost {
public:
    // bytes_s: one thread's rate for one token until it has been measured; no rate is ever believed to be above most_bytes_s.
    CpuCost(double bytes_s, double most_bytes_s) : most_(most_bytes_s) {
        for (size_t c = 0; c < rates_.size(); ++c) rates_[c] = bytes_s * std::min(1.0, kTokensPerRead / static_cast<double>(1 << c));
    }
    double bytes_s(int n_tokens) const { return rates_[class_of(n_tokens)]; }
    double seconds(int64_t bytes, int n_tokens) const { return static_cast<double>(bytes) / bytes_s(n_tokens); }
    void observe(int64_t bytes, int n_tokens, double seconds) {
        double& rate = rates_[class_of(n_tokens)];
        rate = std::min(most_, kMemory * rate + (1.0 - kMemory) * static_cast<double>(bytes) / std::max(seconds, 1e-9));
    }

private:
    static constexpr double kMemory = 0.9;  // of a rate, per sample
    // Tokens up to which multiplying hides behind reading, until it has been measured: a core multiplies 300 to 700 Gop/s and reads 8 GB/s
    // while all the others read, too (bench/results/2026-11-23-kernels).
    static constexpr double kTokensPerRead = 16.0;
    size_t class_of(int n_tokens) const {
        return std::min<size_t>(rates_.size(), static_cast<size_t>(std::bit_width(static_cast<unsigned>(n_tokens)))) - 1;
    }

    const double most_;
    std::array<double, 13> rates_;  // [floor(log2 tokens)]
};

}  // namespace moepic
