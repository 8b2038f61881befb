#include "engine/routing_trace.h"

#include <algorithm>
#include <cstring>

#include "quant/half.h"

namespace moepic {
namespace {

constexpr size_t kHeadBytes = 8;      // sequence, phase, padding
constexpr size_t kOutcomeBytes = 12;  // seconds waited, four counts of granules

void put(std::byte*& at, const void* value, size_t bytes) {
    std::memcpy(at, value, bytes);
    at += bytes;
}

}  // namespace

RoutingTrace::RoutingTrace(const Config& config) {
    for (const LayerConfig& layer : config.layers) {
        n_layer_ += layer.n_expert > 0;
        n_used_ = std::max(n_used_, static_cast<int>(layer.n_expert_used));
    }
}

size_t RoutingTrace::layer_bytes() const noexcept {
    return static_cast<size_t>(n_used_) * 8 + kOutcomeBytes;  // ids, weights, predicted ids, found granules
}

size_t RoutingTrace::record_bytes() const noexcept {
    return kHeadBytes + static_cast<size_t>(n_layer_) * layer_bytes();
}

void RoutingTrace::turn(bool on) {
    is_on_ = on && n_layer_ > 0;
    records_.clear();
    batch_ = 0;
}

void RoutingTrace::begin(int64_t n) {
    if (!is_on_) return;
    batch_ = n;
    const size_t first = records_.size();
    records_.resize(first + static_cast<size_t>(n) * record_bytes());
    for (int64_t t = 0; t < n; ++t) {
        std::byte* record = records_.data() + first + static_cast<size_t>(t) * record_bytes();
        record[4] = std::byte{n == 1};
        for (int il = 0; il < n_layer_; ++il) {  // -1 until a layer says otherwise
            std::byte* layer = record + kHeadBytes + static_cast<size_t>(il) * layer_bytes();
            std::memset(layer, 0xff, static_cast<size_t>(n_used_) * 2);
            std::memset(layer + n_used_ * 4, 0xff, static_cast<size_t>(n_used_) * 2);
        }
    }
}

void RoutingTrace::note(int moe_layer, int64_t n, int64_t k, int64_t n_granules, const int32_t* ids, const float* weights,
                        const PassReport& report) {
    if (!is_on_ || n > batch_) return;
    for (int64_t t = 0; t < n; ++t) {
        std::byte* at = records_.data() + records_.size() - static_cast<size_t>(n - t) * record_bytes() + kHeadBytes +
                        static_cast<size_t>(moe_layer) * layer_bytes();
        std::byte *id = at, *weight = at + n_used_ * 2, *guess = at + n_used_ * 4, *outcome = at + n_used_ * 6,
                  *found = outcome + kOutcomeBytes;
        for (int64_t j = 0; j < k; ++j) {
            const auto narrow = static_cast<int16_t>(ids[t * k + j]);
            const uint16_t half = f32_to_f16(weights[t * k + j]);
            put(id, &narrow, sizeof narrow);
            put(weight, &half, sizeof half);
            const int64_t held = report.found.empty() ? n_granules : report.found[static_cast<size_t>(ids[t * k + j])];
            const auto count = static_cast<uint16_t>(std::min<int64_t>(held, 65535));
            put(found, &count, sizeof count);
        }
        if (t > 0) continue;
        for (size_t j = 0; j < std::min(report.guess.size(), static_cast<size_t>(n_used_)); ++j) {
            const auto narrow = static_cast<int16_t>(report.guess[j]);
            put(guess, &narrow, sizeof narrow);
        }
        const auto waited = static_cast<float>(report.waited_s);
        put(outcome, &waited, sizeof waited);
        for (const int count : {report.n_resident, report.n_link, report.n_in_place, report.n_prefetched}) {
            const auto narrow = static_cast<uint16_t>(std::min(count, 65535));
            put(outcome, &narrow, sizeof narrow);
        }
    }
}

std::vector<std::byte> RoutingTrace::take() {
    return std::exchange(records_, {});
}

}  // namespace moepic
