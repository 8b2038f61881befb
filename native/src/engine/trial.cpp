#include "engine/trial.h"

#include <cmath>

namespace moepic {
namespace {

constexpr double kSideTokens = Trial::kBlock / 2.0;
// A difference is believed when it is larger than this many standard errors, and kSurer / n more where n blocks were seen: few blocks know
// little about their own error, and the question is asked after each of them.
constexpr double kSure = 2.0, kSurer = 8.0;

}  // namespace

bool Trial::is_on() const {
    if (!is_trying()) return choice_;
    const int window = token_ / kWindow % 4;
    const bool is_outer = window == 0 || window == 3, is_second_block = token_ / kBlock % 2 == 1;
    return is_outer != is_second_block;
}

void Trial::observe(double seconds, double missing_bytes) {
    if (!is_trying()) {
        --pause_;
        return;
    }
    Side& side = sides_[is_on()];
    side.s += seconds;
    side.bytes += missing_bytes;
    side.bytes2 += missing_bytes * missing_bytes;
    side.s_bytes += seconds * missing_bytes;
    if (++token_ % kBlock == 0) end_block();
}

void Trial::end_block() {
    const auto& [without, with] = sides_;
    for (const Side& side : sides_) {
        bytes2_ += side.bytes2 - side.bytes * side.bytes / kSideTokens;
        s_bytes_ += side.s_bytes - side.s * side.bytes / kSideTokens;
    }
    blocks_.push_back({(with.s - without.s) / kSideTokens, (with.bytes - without.bytes) / kSideTokens});
    without_s_ += without.s / kSideTokens;
    sides_ = {};
    if (static_cast<int>(blocks_.size()) >= kLeastBlocks) decide();
}

void Trial::decide() {
    const double n = static_cast<double>(blocks_.size()), slope = bytes2_ > 0.0 ? s_bytes_ / bytes2_ : 0.0;
    double sum = 0.0, sum2 = 0.0;
    for (const Difference& block : blocks_) {
        const double d = block.s - slope * block.bytes;
        sum += d, sum2 += d * d;
    }
    const double mean = sum / n, error = std::sqrt(std::max(0.0, (sum2 - sum * sum / n) / (n - 1.0) / n));
    // At last the better mean is taken: what could not be told apart until here costs little either way.
    if (std::abs(mean) <= (kSure + kSurer / n) * error && blocks_.size() < kMostBlocks) return;
    const bool was_on = choice_;
    choice_ = mean <= 0.0;
    if (was_on && !choice_) ++n_switched_off_;
    cost_ = without_s_ > 0.0 ? mean / (without_s_ / n) : 0.0;
    pause_ = kPause;
    token_ = 0;
    blocks_.clear();
    without_s_ = bytes2_ = s_bytes_ = 0.0;
}

}  // namespace moepic
