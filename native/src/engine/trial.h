// Does something pay? Runs tokens with it and without it in turns, compares their wall times, and then leaves it on or off until the next
// trial. Times hold everything, also what the thing costs where nobody waits: cores, submitting, landing.
//
// Tokens differ far more in what they miss than in what is tried, so times are compared at equal missing bytes; and machines change their
// speed, so only tokens near each other are compared. A block is four windows of tokens, with - without - without - with, and every second
// block the other way round:
//
//   slope  seconds per missing byte, from all tokens about the means of their block and side
//   d_b    mean of time - slope * bytes with it, less the same without, of block b
//   cost   mean of d_b, and its standard error from how blocks differ
//
// A token that lost its core to another process says nothing about either side: what its bytes do not explain counts up to twice the
// median.
//
// Pure: seconds and bytes come from the caller.
#pragma once

#include <array>
#include <vector>

namespace moepic {

class Trial {
public:
    static constexpr int kWindow = 2, kBlock = 4 * kWindow;  // tokens
    // A trial decides no earlier, and no later; half of what is lost by the worse side is lost while it lasts.
    static constexpr int kLeastBlocks = 5, kMostBlocks = 32;
    static constexpr int kPause = 512;  // tokens until the next trial

    // Whether the next token runs with it.
    bool is_on() const;
    bool is_trying() const { return pause_ == 0; }
    // That token is done.
    void observe(double seconds, double missing_bytes);

    // Of the last trial that decided: what it costs as a share of a token without it; negative where it saves. 0 before.
    double cost() const { return cost_; }
    int n_switched_off() const { return n_switched_off_; }

private:
    struct Token {
        double s, bytes;
        bool is_with;
    };
    struct Side {
        double s = 0.0, bytes = 0.0;  // means of its tokens
    };
    using Block = std::array<Side, 2>;  // without, with
    struct Fit {
        std::vector<Block> blocks;
        double slope;
    };
    static Fit fit(const std::vector<Token>& tokens);
    void decide();

    std::vector<Token> tokens_;  // of the trial
    int pause_ = 0;              // tokens left; 0: a trial is on
    bool choice_ = true;
    double cost_ = 0.0;
    int n_switched_off_ = 0;
};

}  // namespace moepic
