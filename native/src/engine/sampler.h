// From logits to a token. Pure but for its random state; knows no model.
// Order: logit bias, penalties, (temperature 0: arg max), top-k, typical, top-p, min-p, temperature, draw.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace moepic {

struct SamplerOptions {
    float temperature = 0.0f;     // 0: greedy
    int32_t top_k = 0;            // 0: off
    float top_p = 1.0f;           // Holtzman et al. 2020
    float min_p = 0.0f;           // Nguyen et al. 2024
    float typical_p = 1.0f;       // Meister et al. 2022
    float repeat_penalty = 1.0f;  // Keskar et al. 2019: divides positive logits, multiplies negative ones
    float presence_penalty = 0.0f;
    float frequency_penalty = 0.0f;
    int32_t penalty_last_n = 64;  // -1: all
    uint64_t seed = 0;
    std::vector<std::pair<int32_t, float>> bias;
};

class Sampler {
public:
    explicit Sampler(SamplerOptions options);  // throws argument, naming the option
    // Throws argument when a bias names a token outside the vocabulary or nothing is left to choose from.
    int32_t sample(std::span<const float> logits);
    void accept(std::span<const int32_t> tokens);
    void reset() noexcept;  // forgets tokens, restarts the random sequence

private:
    struct Candidate {
        float logit;
        int32_t id;
        float p;
    };
    bool has_penalties() const noexcept;
    void apply_penalties();
    void keep_top_k();
    void keep_typical();
    void keep_top_p();
    void keep_min_p();
    void fill_probabilities(float temperature);
    double uniform() noexcept;  // [0, 1), SplitMix64

    SamplerOptions options_;
    uint64_t state_;
    std::vector<int32_t> history_;
    std::vector<Candidate> candidates_;
};

// log softmax of one row: of `token`, and of the n most likely ids, descending, ties by lower id. Sums in double.
void log_probabilities(std::span<const float> logits, int32_t token, std::span<int32_t> top_ids, std::span<float> top_values,
                       float& of_token);

}  // namespace moepic
