// Which experts a layer will want before its router has spoken, and whether asking pays. A wrong guess may cost time, never output.
// Pure: ids and times come from the caller; it loads nothing and reads no clock.
//
//   next_layer      the router of a later layer, run on this layer's state (the residual stream changes little from layer to layer); the
//   engine runs
//                   it and hands the ids over with foretell(), one layer ahead or two.
//   previous_token  what the layer used for the token before: free, right for 28 to 45 % of ids on recorded traces.
//
// Every guess is scored per layer. Published engines lost speed with 70 to 80 % recall where demand copies already fill the link, so a
// layer that loses time stops prefetching, keeps scoring, and tries again later.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moepic::predict {

enum class Source : int { none = 0, previous_token = 1, next_layer = 2 };

struct Options {
    Source source = Source::next_layer;
    double half_life = 32.0;  // tokens over which gains and losses are remembered
    int trial = 16;           // tokens a layer may prefetch before it is judged
    int pause = 256;          // tokens until a layer that was switched off tries again
};

void validate(const Options& options);

// What became of one layer's guess. Seconds are the caller's measurements or model: saved_s is demand time avoided by useful bytes, lost_s
// the time that demand transfers waited behind wasted ones.
struct Outcome {
    int64_t useful_bytes = 0;
    int64_t wasted_bytes = 0;
    int64_t late_bytes = 0;  // rightly predicted, but compute still waited for them
    double saved_s = 0.0;
    double lost_s = 0.0;
};

struct Score {
    int64_t n_guessed = 0;  // ids
    int64_t n_used = 0;     // ids the router chose where there was a guess
    int64_t n_right = 0;
    int64_t useful_bytes = 0, wasted_bytes = 0, late_bytes = 0;
    double saved_s = 0.0, lost_s = 0.0;
    bool is_on = true;
    int n_switched_off = 0;

    double recall() const { return n_used ? static_cast<double>(n_right) / static_cast<double>(n_used) : 0.0; }
};

class Predictor {
public:
    Predictor(int n_layer, const Options& options);

    // next_layer: ids for `layer`, best first. The last call before observe() counts, so a guess made nearer replaces one made earlier.
    void foretell(int layer, std::span<const int32_t> ids);

    // The guess for `layer`, best first; empty without one.
    std::span<const int32_t> guess(int layer) const { return layers_[layer].guess; }
    // Whether to act on it. A layer that is off is still guessed and scored.
    bool should_prefetch(int layer) const { return layers_[layer].score.is_on && !layers_[layer].guess.empty(); }

    // The router of `layer` has spoken; ids of -1 are skipped. Ends the guess, and starts the next token's for previous_token.
    void observe(int layer, std::span<const int32_t> used, const Outcome& outcome);

    // A new sequence starts: what the last token used says nothing about it.
    void forget();
    const Score& score(int layer) const { return layers_[layer].score; }

private:
    struct Layer {
        std::vector<int32_t> guess;
        Score score;
        double balance_s = 0.0;  // decayed saved_s - lost_s
        int tokens = 0;          // since it was switched on, or off
    };
    void judge(Layer& layer, const Outcome& outcome);

    Options options_;
    std::vector<Layer> layers_;
};

}  // namespace moepic::predict
