#include "engine/trial.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace moepic {
namespace {

constexpr double kSideTokens = Trial::kBlock / 2.0;  // of a block
// A difference is believed when it is larger than this many standard errors, and kSurer / n more where n blocks were seen: few blocks know
// little about their own error, and the question is asked after each of them.
constexpr double kSure = 2.0, kSurer = 8.0;
constexpr double kMostOfMedian = 2.0;
constexpr int kRounds = 3;  // slope and outliers depend on each other

struct Side {
    double s = 0.0, bytes = 0.0;  // means of its tokens
};
using Block = std::array<Side, 2>;  // without, with

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

}  // namespace

bool Trial::is_on() const {
    if (!is_trying()) return choice_;
    const size_t window = tokens_.size() / kWindow % 4;
    const bool is_outer = window == 0 || window == 3, is_second_block = tokens_.size() / kBlock % 2 == 1;
    return is_outer != is_second_block;
}

void Trial::observe(double seconds, double missing_bytes) {
    if (!is_trying()) {
        --pause_;
        return;
    }
    tokens_.push_back({seconds, missing_bytes, is_on()});
    if (tokens_.size() % kBlock == 0 && tokens_.size() >= kLeastBlocks * kBlock) decide();
}

void Trial::decide() {
    std::vector<Token> tokens = tokens_;
    std::vector<Block> blocks;
    double slope = 0.0;
    for (int round = 0; round < kRounds; ++round) {
        blocks.assign(tokens.size() / kBlock, {});
        for (size_t i = 0; i < tokens.size(); ++i) {
            Side& side = blocks[i / kBlock][tokens[i].is_with];
            side.s += tokens[i].s / kSideTokens;
            side.bytes += tokens[i].bytes / kSideTokens;
        }
        double s_bytes = 0.0, bytes2 = 0.0;
        for (size_t i = 0; i < tokens.size(); ++i) {
            const Side& side = blocks[i / kBlock][tokens[i].is_with];
            const double bytes = tokens[i].bytes - side.bytes;
            s_bytes += (tokens[i].s - side.s) * bytes;
            bytes2 += bytes * bytes;
        }
        slope = bytes2 > 0.0 ? s_bytes / bytes2 : 0.0;
        std::vector<double> rest;
        for (const Token& token : tokens_) rest.push_back(token.s - slope * token.bytes);
        const double most = kMostOfMedian * median(rest);
        for (size_t i = 0; i < tokens.size(); ++i) tokens[i].s = slope * tokens[i].bytes + std::min(rest[i], most);
    }
    const double n = static_cast<double>(blocks.size());
    double sum = 0.0, sum2 = 0.0, without_s = 0.0;
    for (const auto& [without, with] : blocks) {
        const double d = with.s - without.s - slope * (with.bytes - without.bytes);
        sum += d, sum2 += d * d;
        without_s += without.s;
    }
    const double mean = sum / n, error = std::sqrt(std::max(0.0, sum2 - sum * sum / n) / (n - 1.0) / n);
    // At last the better mean is taken: what could not be told apart until here costs little either way.
    if (std::abs(mean) <= (kSure + kSurer / n) * error && blocks.size() < kMostBlocks) return;
    n_switched_off_ += choice_ && mean > 0.0;
    choice_ = mean <= 0.0;
    cost_ = without_s > 0.0 ? sum / without_s : 0.0;
    pause_ = kPause;
    tokens_.clear();
}

}  // namespace moepic
