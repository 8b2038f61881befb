// How fast expert granules are computed from memory in decode: the engine's kernels over layers of the shape of Qwen3-30B-A3B in Q4_K
// (n_embd 2048, n_ff 768, granules of 256 neurons, 8 experts a token), on a working set larger than the caches. Gate, up, activation and
// down as the engine runs them, one job a layer; router, attention and the reduction are not in it.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "base/region.h"
#include "base/thread_pool.h"
#include "ops/ops.h"

namespace moepic::measure {

class GranuleWork {
public:
    static constexpr int64_t kGranule = 256, kEmbd = 2048, kGranulesPerExpert = 3, kExperts = 8;

    GranuleWork(ThreadPool& pool, const ops::Kernels& kernels, uint64_t n_bytes);
    // Computes layers of random experts for about `seconds`; bytes of weights per second.
    double run(double seconds);
    // Re-tiles granules from the rows a file has, from memory to memory, for about `seconds`; bytes per second. Destroys the working set:
    // what it reads as rows are tiles, and it writes over others.
    double land(double seconds);
    static uint64_t granule_bytes();

private:
    struct Scratch {
        float *gate, *up, *partial;
        std::byte *acts, *matmul;
    };
    void place(Carver& carver);
    void fill();
    void tile(const std::byte* gate, const std::byte* up, const std::byte* down, std::byte* granule) const;
    void compute(const std::byte* granule, const Scratch& scratch) const;

    ThreadPool& pool_;
    const ops::Kernels& kernels_;
    const int64_t n_experts_;  // that the working set holds
    Region weights_, memory_;
    std::byte* acts_ = nullptr;     // of the token, for gate and up
    std::vector<Scratch> threads_;  // each thread's own
    std::mt19937_64 random_{1};
};

}  // namespace moepic::measure
