#include "measure/granules.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "quant/blocks.h"

namespace moepic::measure {
namespace {

constexpr Type kType = Type::q4_k;

uint64_t up_bytes() {
    return ops::tiled_bytes(kType, GranuleWork::kGranule, GranuleWork::kEmbd);
}

uint64_t expert_bytes() {
    return GranuleWork::granule_bytes() * GranuleWork::kGranulesPerExpert;
}

}  // namespace

uint64_t GranuleWork::granule_bytes() {
    return 2 * up_bytes() + ops::tiled_bytes(kType, kEmbd, kGranule);
}

GranuleWork::GranuleWork(ThreadPool& pool, const ops::Kernels& kernels, uint64_t n_bytes)
    : pool_(pool),
      kernels_(kernels),
      n_experts_(std::max<int64_t>(static_cast<int64_t>(n_bytes / expert_bytes()), 2 * kExperts)),
      weights_(expert_bytes() * static_cast<uint64_t>(n_experts_), "measure: experts"),
      threads_(static_cast<size_t>(pool.size())) {
    Carver size;
    place(size);
    memory_ = Region(size.used(), "measure: scratch");
    Carver carver(memory_.data());
    place(carver);
    fill();
}

void GranuleWork::place(Carver& carver) {
    acts_ = carver.take<std::byte>(ops::act_bytes(ops::act_kind(kType), kEmbd));
    for (Scratch& scratch : threads_) {
        scratch.gate = carver.take<float>(kGranule);
        scratch.up = carver.take<float>(kGranule);
        scratch.partial = carver.take<float>(kEmbd);
        scratch.acts = carver.take<std::byte>(ops::act_bytes(ops::act_kind(kType), kGranule));
        scratch.matmul = carver.take<std::byte>(ops::kMatmulScratchBytes);
    }
}

// One granule of random codes under plain scales, copied everywhere: the values do not matter to the time as long as they are ordinary
// numbers, the addresses do. Each thread touches what it fills first.
void GranuleWork::fill() {
    std::vector<BlockQ4_K> blocks(static_cast<size_t>(kGranule * kEmbd) / 256);
    for (BlockQ4_K& block : blocks) {
        for (uint8_t& byte : block.scales) byte = static_cast<uint8_t>(random_());
        for (uint8_t& byte : block.qs) byte = static_cast<uint8_t>(random_());
        block.d = block.dmin = 0x0c00;  // 2^-12 as a half
    }
    const auto* const source = reinterpret_cast<const std::byte*>(blocks.data());
    std::byte* const first = weights_.data();
    tile(source, source, source, first);
    pool_.run(n_experts_ * kGranulesPerExpert - 1,
              [&](int64_t index, int) { std::memcpy(first + static_cast<uint64_t>(index + 1) * granule_bytes(), first, granule_bytes()); });
    std::array<float, kEmbd> x;
    std::normal_distribution<float> normal;
    for (float& value : x) value = normal(random_);
    kernels_.quantize_act(ops::act_kind(kType), x.data(), kEmbd, acts_);
}

void GranuleWork::tile(const std::byte* gate, const std::byte* up, const std::byte* down, std::byte* granule) const {
    kernels_.tile_rows(kType, gate, row_bytes(kType, kEmbd), kGranule, kEmbd, granule, ops::TileStores::cached);
    kernels_.tile_rows(kType, up, row_bytes(kType, kEmbd), kGranule, kEmbd, granule + up_bytes(), ops::TileStores::cached);
    kernels_.tile_rows(kType, down, row_bytes(kType, kGranule), kEmbd, kGranule, granule + 2 * up_bytes(), ops::TileStores::cached);
}

// From random experts of the first half to the experts of the second, each in its turn: nobody reads what another thread writes.
double GranuleWork::land(double seconds) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    const int64_t half = n_experts_ / 2;
    std::uniform_int_distribution<int64_t> any(0, half - 1);
    std::chrono::duration<double> took{};
    uint64_t n_bytes = 0;
    for (int64_t turn = 0; took.count() < seconds; turn = (turn + kExperts) % half) {
        std::array<int64_t, kExperts> sources;
        for (int64_t& expert : sources) expert = any(random_);
        pool_.run(kExperts * kGranulesPerExpert, [&](int64_t index, int) {
            const int64_t expert = index / kGranulesPerExpert;
            const auto g = static_cast<uint64_t>(index % kGranulesPerExpert) * granule_bytes();
            const std::byte* const from =
                weights_.data() + static_cast<uint64_t>(sources[static_cast<size_t>(expert)]) * expert_bytes() + g;
            const auto to = static_cast<uint64_t>(half + (turn + expert) % half) * expert_bytes() + g;
            tile(from, from + up_bytes(), from + 2 * up_bytes(), weights_.data() + to);
        });
        n_bytes += kExperts * expert_bytes();
        took = Clock::now() - start;
    }
    return static_cast<double>(n_bytes) / took.count();
}

void GranuleWork::compute(const std::byte* granule, const Scratch& scratch) const {
    const auto multiply = [&](const ops::TiledMatrix& w, const std::byte* acts, float* y) {
        ops::MatmulJob job;
        job.w = w;
        job.acts = acts;
        job.act_stride = ops::act_bytes(ops::act_kind(kType), w.cols);
        job.n_tokens = 1;
        job.y = y;
        job.y_stride = w.rows;
        job.tile_end = w.n_tiles();
        job.scratch = scratch.matmul;
        kernels_.matmul(job);
    };
    multiply({kType, kGranule, kEmbd, granule}, acts_, scratch.gate);
    multiply({kType, kGranule, kEmbd, granule + up_bytes()}, acts_, scratch.up);
    kernels_.glu(ops::GluKind::silu, scratch.gate, scratch.up, scratch.gate, kGranule);
    kernels_.quantize_act(ops::act_kind(kType), scratch.gate, kGranule, scratch.acts);
    multiply({kType, kEmbd, kGranule, granule + 2 * up_bytes()}, scratch.acts, scratch.partial);
}

double GranuleWork::run(double seconds) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    std::uniform_int_distribution<int64_t> any(0, n_experts_ - 1);
    std::chrono::duration<double> took{};
    uint64_t n_bytes = 0;
    do {
        std::array<int64_t, kExperts> experts;
        for (int64_t& expert : experts) expert = any(random_);
        pool_.run(kExperts * kGranulesPerExpert, [&](int64_t index, int thread) {
            const auto expert = static_cast<uint64_t>(experts[static_cast<size_t>(index / kGranulesPerExpert)]);
            const auto g = static_cast<uint64_t>(index % kGranulesPerExpert);
            compute(weights_.data() + expert * expert_bytes() + g * granule_bytes(), threads_[static_cast<size_t>(thread)]);
        });
        n_bytes += kExperts * expert_bytes();
        took = Clock::now() - start;
    } while (took.count() < seconds);
    if (!std::isfinite(threads_[0].partial[0])) fail(Code::internal, "measure: granules gave no numbers");
    return static_cast<double>(n_bytes) / took.count();
}

}  // namespace moepic::measure
