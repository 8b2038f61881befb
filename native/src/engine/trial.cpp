#include "engine/trial.h"

#include <algorithm>
#include <cmath>

namespace moepic {
namespace {

constexpr double kSideTokens = Trial::kBlock / 2.0;  // of a block
// A difference is believed when it is larger than this many standard errors, and kSurer / n more where n blocks were seen: few blocks know
// little about their own error, and the question is asked after each of them.
constexpr double kSure = 2.0, kSurer = 8.0;
constexpr double kMostOfMedian = 2.0;
constexpr int kRounds = 3;  // slope and outliers depend on each other

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

Trial::Fit Trial::fit(const std::vector<Token>& tokens) {
    Fit fit{std::vector<Block>(tokens.size() / kBlock), 0.0};
    const auto side_of = [&](size_t i) -> Side& { return fit.blocks[i / kBlock][tokens[i].is_with]; };
    for (size_t i = 0; i < tokens.size(); ++i) {
        side_of(i).s += tokens[i].s / kSideTokens;
        side_of(i).bytes += tokens[i].bytes / kSideTokens;
    }
    double s_bytes = 0.0, bytes2 = 0.0;
    for (size_t i = 0; i < tokens.size(); ++i) {
        const double bytes = tokens[i].bytes - side_of(i).bytes;
        s_bytes += (tokens[i].s - side_of(i).s) * bytes;
        bytes2 += bytes * bytes;
    }
    if (bytes2 > 0.0) fit.slope = s_bytes / bytes2;
    return fit;
}

void Trial::decide() {
    Fit found = fit(tokens_);
    for (int round = 1; round < kRounds; ++round) {
        std::vector<double> rest;
        for (const Token& token : tokens_) rest.push_back(token.s - found.slope * token.bytes);
        const double most = kMostOfMedian * median(rest);
        std::vector<Token> tokens = tokens_;
        for (size_t i = 0; i < tokens.size(); ++i) tokens[i].s -= std::max(0.0, rest[i] - most);
        found = fit(tokens);
    }
    const double n = static_cast<double>(found.blocks.size());
    double sum = 0.0, sum2 = 0.0, without_s = 0.0;
    for (const auto& [without, with] : found.blocks) {
        const double d = with.s - without.s - found.slope * (with.bytes - without.bytes);
        sum += d, sum2 += d * d;
        without_s += without.s;
    }
    const double mean = sum / n, error = std::sqrt(std::max(0.0, sum2 - sum * sum / n) / (n - 1.0) / n);
    // At last the better mean is taken: what could not be told apart until here costs little either way.
    if (std::abs(mean) <= (kSure + kSurer / n) * error && found.blocks.size() < kMostBlocks) return;
    n_switched_off_ += choice_ && mean > 0.0;
    choice_ = mean <= 0.0;
    cost_ = without_s > 0.0 ? sum / without_s : 0.0;
    pause_ = kPause;
    tokens_.clear();
}

}  // namespace moepic
