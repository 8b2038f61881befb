// Encoders of the types with 256 weights per block: k-quants and IQ4_XS. Their sub-blocks have integer scales under one d (and
// dmin), so a sub-block cannot have the scale it would like. The method, for both families:
//   1. fit each sub-block alone (fit.h);
//   2. with those codes held, the error is a quadratic in each scale: choose d (then dmin) from a few candidates by the error left
//      after the sub-block scales have become integers;
//   3. rounds of: per sub-block, try the neighbouring integers with the codes chosen anew; then, integers and codes held, solve for d
//      (and dmin) over all 256 weights. Every step is judged by the error of the block as it will be read, and kept only if smaller.
#include <cstring>

#include "quant/blocks.h"
#include "quant/codec.h"
#include "quant/fit.h"

namespace moepic::codec {
namespace {

constexpr int kRounds = 3;

// ---- scale only: x = (d scale) q ----

// A block of S sub-blocks of L weights, with integer scales from ScaleLo to ScaleHi.
template <class Levels, int S, int L, int ScaleLo, int ScaleHi>
struct ScaledBlock {
    alignas(64) float x[S * L], w[S * L];
    float level[S * L];  // of the current choice
    int scale[S];
    float sub_error[S];
    uint16_t d;

    // `targets` for the sub-block fits; `peaks` are the integers (not rounded) the largest sub-block scale is sent to.
    template <size_t K, size_t P>
    void encode(const std::array<float, K>& targets, const std::array<float, P>& peaks) noexcept {
        float wish[S];
        for (int s = 0; s < S; ++s) wish[s] = fit_scale<Levels, L>(x + s * L, w + s * L, targets).d;
        choose_d(wish, peaks);
        choose_codes();
        for (int round = 0; round < kRounds; ++round) {
            const bool moved = move_scales();
            const bool solved = solve_d();
            if (!moved && !solved) break;
        }
    }

private:
    template <size_t P>
    void choose_d(const float (&wish)[S], const std::array<float, P>& peaks) noexcept {
        float stiffness[S];  // sum of w q^2: the error of sub-block s grows by this times the squared miss of its scale
        for (int s = 0; s < S; ++s) {
            const float per_d = wish[s] == 0.0f ? 0.0f : 1.0f / wish[s];
            float qq[L];
            for (int i = 0; i < L; ++i) {
                const float q = Levels::nearest(x[s * L + i] * per_d);
                qq[i] = w[s * L + i] * q * q;
            }
            stiffness[s] = sum(qq);
        }
        const float peak = signed_peak<S>(wish);
        d = 0;
        for (int s = 0; s < S; ++s) scale[s] = 0;
        if (peak == 0.0f) return;
        float least = std::numeric_limits<float>::max();
        for (const float target : peaks) {
            const uint16_t trial = scale_to_f16(peak / target);
            const float value = f16_to_f32(trial), per_value = 1.0f / value;
            float error = 0.0f;
            int trial_scale[S];
            for (int s = 0; s < S; ++s) {
                trial_scale[s] = clamp_round(wish[s] * per_value, ScaleLo, ScaleHi);
                const float miss = wish[s] - value * static_cast<float>(trial_scale[s]);
                error += stiffness[s] * miss * miss;
            }
            if (error < least) {
                least = error;
                d = trial;
                std::memcpy(scale, trial_scale, sizeof scale);
            }
        }
    }

    void choose_codes() noexcept {
        const float value = f16_to_f32(d);
        for (int s = 0; s < S; ++s) {
            sub_error[s] = choose_levels<Levels, L>(x + s * L, w + s * L, value * static_cast<float>(scale[s]), level + s * L);
        }
    }

    bool move_scales() noexcept {
        const float value = f16_to_f32(d);
        bool moved = false;
        for (int s = 0; s < S; ++s) {
            const int here = scale[s];
            for (const int there : {here - 1, here + 1}) {
                if (there < ScaleLo || there > ScaleHi) continue;
                float trial[L];
                const float error = choose_levels<Levels, L>(x + s * L, w + s * L, value * static_cast<float>(there), trial);
                if (!(error < sub_error[s])) continue;
                sub_error[s] = error;
                scale[s] = there;
                std::memcpy(level + s * L, trial, sizeof trial);
                moved = true;
            }
        }
        return moved;
    }

    bool solve_d() noexcept {
        double xu = 0.0, uu = 0.0, before = 0.0;
        for (int s = 0; s < S; ++s) {
            float xq[L], qq[L];
            for (int i = 0; i < L; ++i) {
                const float wq = w[s * L + i] * level[s * L + i];
                xq[i] = wq * x[s * L + i];
                qq[i] = wq * level[s * L + i];
            }
            const double c = scale[s];
            xu += c * static_cast<double>(sum(xq));
            uu += c * c * static_cast<double>(sum(qq));
            before += static_cast<double>(sub_error[s]);
        }
        if (!(uu > 0.0)) return false;
        const uint16_t solved = scale_to_f16(static_cast<float>(xu / uu));
        if (solved == d) return false;
        const ScaledBlock old = *this;
        d = solved;
        choose_codes();
        double after = 0.0;
        for (int s = 0; s < S; ++s) after += static_cast<double>(sub_error[s]);
        if (after < before) return true;
        *this = old;
        return false;
    }
};

// ---- scale and minimum: x = (d scale) q - (dmin min) ----

// Sums of one sub-block for given codes.
struct Moments {
    float w, x, q, qq, xq;  // of w, w x, w q, w q^2, w x q
};

// A block of S sub-blocks of L weights with codes 0..Top and integer scales and minimums 0..Most.
template <int Top, int S, int L, int Most>
struct AffineBlock {
    alignas(64) float x[S * L], w[S * L];
    float q[S * L];  // of the current choice
    uint8_t scale[S], min[S];
    float sub_error[S];
    float sum_w[S], sum_wx[S];
    uint16_t d, dmin;

    template <size_t K, size_t P>
    void encode(const Cut (&cuts)[K], const std::array<float, P>& peaks) noexcept {
        AffineFit wish[S];
        Moments moments[S];
        for (int s = 0; s < S; ++s) {
            wish[s] = fit_affine<Top, L>(x + s * L, w + s * L, true, cuts);
            choose_affine<Top, L>(x + s * L, w + s * L, wish[s].a, wish[s].b, q + s * L);
            moments[s] = measure(s, q + s * L);
            sum_w[s] = moments[s].w;
            sum_wx[s] = moments[s].x;
        }
        choose_d(wish, moments, peaks);
        choose_dmin(moments, peaks);
        choose_codes();
        for (int round = 0; round < kRounds; ++round) {
            const bool moved = move_scales();
            const bool solved = solve_d_dmin();
            if (!moved && !solved) break;
        }
    }

private:
    Moments measure(int s, const float* codes) const noexcept {
        float w1[L], wx[L], wq[L], qq[L], xq[L];
        for (int i = 0; i < L; ++i) {
            w1[i] = w[s * L + i];
            wx[i] = w1[i] * x[s * L + i];
            wq[i] = w1[i] * codes[i];
            qq[i] = wq[i] * codes[i];
            xq[i] = wx[i] * codes[i];
        }
        return {sum(w1), sum(wx), sum(wq), sum(qq), sum(xq)};
    }

    // The offset that suits scale a best, codes held.
    static float best_min(const Moments& m, float a) noexcept { return std::max((a * m.q - m.x) / m.w, 0.0f); }

    template <size_t P>
    void choose_d(const AffineFit (&wish)[S], const Moments (&moments)[S], const std::array<float, P>& peaks) noexcept {
        float peak = 0.0f;
        for (int s = 0; s < S; ++s) peak = std::max(peak, wish[s].a);
        d = 0;
        std::memset(scale, 0, sizeof scale);
        if (peak == 0.0f) return;
        float least = std::numeric_limits<float>::max();
        for (const float target : peaks) {
            const uint16_t trial = scale_to_f16(peak / target);
            const float value = f16_to_f32(trial), per_value = 1.0f / value;
            float error = 0.0f;
            uint8_t trial_scale[S];
            for (int s = 0; s < S; ++s) {
                const int c = clamp_round(wish[s].a * per_value, 0, Most);
                trial_scale[s] = static_cast<uint8_t>(c);
                const float miss = wish[s].a - value * static_cast<float>(c);
                // The minimum can follow the scale, so only the spread of the codes resists.
                error += (moments[s].qq - moments[s].q * moments[s].q / moments[s].w) * miss * miss;
            }
            if (error < least) {
                least = error;
                d = trial;
                std::memcpy(scale, trial_scale, sizeof scale);
            }
        }
    }

    template <size_t P>
    void choose_dmin(const Moments (&moments)[S], const std::array<float, P>& peaks) noexcept {
        const float value = f16_to_f32(d);
        float wish[S], peak = 0.0f;
        for (int s = 0; s < S; ++s) {
            wish[s] = best_min(moments[s], value * static_cast<float>(scale[s]));
            peak = std::max(peak, wish[s]);
        }
        dmin = 0;
        std::memset(min, 0, sizeof min);
        if (peak == 0.0f) return;
        float least = std::numeric_limits<float>::max();
        for (const float target : peaks) {
            const uint16_t trial = scale_to_f16(peak / target);
            const float trial_value = f16_to_f32(trial), per_value = 1.0f / trial_value;
            float error = 0.0f;
            uint8_t trial_min[S];
            for (int s = 0; s < S; ++s) {
                const int c = clamp_round(wish[s] * per_value, 0, Most);
                trial_min[s] = static_cast<uint8_t>(c);
                const float miss = wish[s] - trial_value * static_cast<float>(c);
                error += moments[s].w * miss * miss;
            }
            if (error < least) {
                least = error;
                dmin = trial;
                std::memcpy(min, trial_min, sizeof min);
            }
        }
    }

    float choose_sub(int s, int c, int m, float* codes) const noexcept {
        return choose_affine<Top, L>(x + s * L, w + s * L, f16_to_f32(d) * static_cast<float>(c), f16_to_f32(dmin) * static_cast<float>(m),
                                     codes);
    }

    void choose_codes() noexcept {
        for (int s = 0; s < S; ++s) sub_error[s] = choose_sub(s, scale[s], min[s], q + s * L);
    }

    // For each neighbouring scale: the minimum as it is, then the one that suits the codes chosen with it.
    bool move_scales() noexcept {
        const float value = f16_to_f32(d), min_value = f16_to_f32(dmin);
        const float per_min = min_value == 0.0f ? 0.0f : 1.0f / min_value;
        bool moved = false;
        for (int s = 0; s < S; ++s) {
            const int here = scale[s];
            for (const int there : {here, here - 1, here + 1}) {
                if (there < 0 || there > Most) continue;
                float trial[L];
                int m = min[s];
                for (int step = 0; step < 2; ++step) {
                    const float error = choose_sub(s, there, m, trial);
                    if (error < sub_error[s]) {
                        sub_error[s] = error;
                        scale[s] = static_cast<uint8_t>(there);
                        min[s] = static_cast<uint8_t>(m);
                        std::memcpy(q + s * L, trial, sizeof trial);
                        moved = true;
                    }
                    float wq[L];
                    for (int i = 0; i < L; ++i) wq[i] = w[s * L + i] * trial[i];
                    const float wish = (value * static_cast<float>(there) * sum(wq) - sum_wx[s]) / sum_w[s];
                    const int suited = clamp_round(wish * per_min, 0, Most);
                    if (suited == m) break;
                    m = suited;
                }
            }
        }
        return moved;
    }

    // Normal equations of x = d u - dmin v over the block, u = scale q, v = min.
    bool solve_d_dmin() noexcept {
        double uu = 0.0, uv = 0.0, vv = 0.0, ux = 0.0, vx = 0.0, before = 0.0;
        for (int s = 0; s < S; ++s) {
            const Moments m = measure(s, q + s * L);
            const double c = scale[s], o = min[s];
            uu += c * c * static_cast<double>(m.qq);
            uv += c * o * static_cast<double>(m.q);
            vv += o * o * static_cast<double>(m.w);
            ux += c * static_cast<double>(m.xq);
            vx += o * static_cast<double>(m.x);
            before += static_cast<double>(sub_error[s]);
        }
        const double det = uu * vv - uv * uv;
        double a = f16_to_f32(d), b = f16_to_f32(dmin);
        if (det > 1e-6 * uu * vv) {
            a = (ux * vv - uv * vx) / det;
            b = (uv * ux - uu * vx) / det;
        } else if (uu > 0.0) {
            a = (ux + b * uv) / uu;
        }
        if (!(a > 0.0 && b >= 0.0)) return false;
        const uint16_t new_d = scale_to_f16(static_cast<float>(a)), new_dmin = scale_to_f16(static_cast<float>(b));
        if (new_d == d && new_dmin == dmin) return false;
        const AffineBlock old = *this;
        d = new_d;
        dmin = new_dmin;
        choose_codes();
        double after = 0.0;
        for (int s = 0; s < S; ++s) after += static_cast<double>(sub_error[s]);
        if (after < before) return true;
        *this = old;
        return false;
    }
};

// ---- starts ----

constexpr Cut cuts_2_bit[] = {{0, 0},   {.15f, .15f},   {.3f, .3f}, {.5f, .5f}, {0, .3f},
                              {.3f, 0}, {-.15f, -.15f}, {0, .6f},   {.6f, 0},   {.7f, .7f}};
constexpr auto peaks_4_bit = spread<11>(10.0f, 15.0f);
constexpr auto peaks_6_bit = spread<10>(54.0f, 63.0f);

using Levels3 = Integers<-4, 3>;
constexpr auto targets_q3_k = both_ends(spread<6>(-5.2f, -3.6f), spread<6>(2.5f, 4.0f));
using Levels6 = Integers<-32, 31>;
constexpr auto targets_q6_k = both_ends(spread<16>(-36.0f, -28.0f), spread<14>(28.0f, 35.0f));
constexpr auto peaks_signed_6_bit = both_ends(spread<11>(-32.0f, -27.0f), spread<5>(29.0f, 31.0f));
constexpr auto peaks_8_bit = spread<13>(-128.0f, -116.0f);
constexpr Table iq4_nl_table(iq4_nl_values);
using LevelsIq4Nl = Tabulated<iq4_nl_table>;
constexpr auto targets_iq4_xs = both_ends(spread<8>(-148.0f, -113.0f), spread<8>(134.0f, 99.0f));

// Call body(choice, block) for each block, with x and w of the choice filled.
template <class Choice, class Block, class Body>
void encode_blocks(const float* in, const float* importance, std::byte* blocks, int64_t n, Body body) {
    auto* block = reinterpret_cast<Block*>(blocks);
    for (int64_t i = 0; i < n; i += Block::len) {
        Choice choice;
        load(in + i, importance == nullptr ? nullptr : importance + i, kLargest, choice.x, choice.w);
        body(choice, *block++);
    }
}

// Two bits of each code, as Q2_K and Q3_K have them.
void pack_two_bits(const int (&code)[256], uint8_t (&qs)[64]) {
    std::memset(qs, 0, sizeof qs);
    for (int i = 0; i < 256; ++i) {
        uint8_t& byte = qs[i / 128 * 32 + i % 32];
        byte = static_cast<uint8_t>(byte | ((code[i] & 3) << (i % 128 / 32 * 2)));
    }
}

// Low nibbles, as Q4_K and Q5_K have them.
void pack_nibbles_64(const int (&code)[256], uint8_t (&qs)[128]) {
    for (int run = 0; run < 4; ++run) {
        for (int i = 0; i < 32; ++i) {
            qs[32 * run + i] = static_cast<uint8_t>((code[64 * run + i] & 15) | ((code[64 * run + 32 + i] & 15) << 4));
        }
    }
}

}  // namespace

MOEPIC_WIDE void encode_q2_k(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    using Choice = AffineBlock<3, 16, 16, 15>;
    encode_blocks<Choice, BlockQ2_K>(in, importance, blocks, n, [](Choice& choice, BlockQ2_K& b) {
        choice.encode(cuts_2_bit, peaks_4_bit);
        int code[256];
        for (int i = 0; i < 256; ++i) code[i] = static_cast<int>(choice.q[i]);
        pack_two_bits(code, b.qs);
        for (int s = 0; s < 16; ++s) b.scales[s] = static_cast<uint8_t>(choice.scale[s] | (choice.min[s] << 4));
        b.d = choice.d;
        b.dmin = choice.dmin;
    });
}

MOEPIC_WIDE void encode_q3_k(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    using Choice = ScaledBlock<Levels3, 16, 16, -32, 31>;
    encode_blocks<Choice, BlockQ3_K>(in, importance, blocks, n, [](Choice& choice, BlockQ3_K& b) {
        choice.encode(targets_q3_k, peaks_signed_6_bit);
        int code[256];
        std::memset(b.hmask, 0, sizeof b.hmask);
        for (int i = 0; i < 256; ++i) {
            code[i] = Levels3::code(choice.level[i]);
            b.hmask[i % 32] = static_cast<uint8_t>(b.hmask[i % 32] | ((code[i] >> 2) << (i / 32)));
        }
        pack_two_bits(code, b.qs);
        int8_t scales[16];
        for (int s = 0; s < 16; ++s) scales[s] = static_cast<int8_t>(choice.scale[s]);
        pack_scales_q3_K(scales, b.scales);
        b.d = choice.d;
    });
}

MOEPIC_WIDE void encode_q4_k(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    using Choice = AffineBlock<15, 8, 32, 63>;
    encode_blocks<Choice, BlockQ4_K>(in, importance, blocks, n, [](Choice& choice, BlockQ4_K& b) {
        choice.encode(cuts_of_range, peaks_6_bit);
        int code[256];
        for (int i = 0; i < 256; ++i) code[i] = static_cast<int>(choice.q[i]);
        pack_nibbles_64(code, b.qs);
        pack_scales_q4_K(choice.scale, choice.min, b.scales);
        b.d = choice.d;
        b.dmin = choice.dmin;
    });
}

MOEPIC_WIDE void encode_q5_k(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    using Choice = AffineBlock<31, 8, 32, 63>;
    encode_blocks<Choice, BlockQ5_K>(in, importance, blocks, n, [](Choice& choice, BlockQ5_K& b) {
        choice.encode(cuts_of_range, peaks_6_bit);
        int code[256];
        std::memset(b.qh, 0, sizeof b.qh);
        for (int i = 0; i < 256; ++i) {
            code[i] = static_cast<int>(choice.q[i]);
            b.qh[i % 32] = static_cast<uint8_t>(b.qh[i % 32] | ((code[i] >> 4) << (i / 32)));
        }
        pack_nibbles_64(code, b.qs);
        pack_scales_q4_K(choice.scale, choice.min, b.scales);
        b.d = choice.d;
        b.dmin = choice.dmin;
    });
}

MOEPIC_WIDE void encode_q6_k(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    using Choice = ScaledBlock<Levels6, 16, 16, -128, 127>;
    encode_blocks<Choice, BlockQ6_K>(in, importance, blocks, n, [](Choice& choice, BlockQ6_K& b) {
        choice.encode(targets_q6_k, peaks_8_bit);
        std::memset(b.ql, 0, sizeof b.ql);
        std::memset(b.qh, 0, sizeof b.qh);
        for (int i = 0; i < 256; ++i) {
            const int code = Levels6::code(choice.level[i]), half = i / 128, at = i % 128;
            uint8_t& low = b.ql[64 * half + at % 64];
            uint8_t& high = b.qh[32 * half + at % 32];
            low = static_cast<uint8_t>(low | ((code & 15) << (at / 64 * 4)));
            high = static_cast<uint8_t>(high | ((code >> 4) << (at / 32 * 2)));
        }
        for (int s = 0; s < 16; ++s) b.scales[s] = static_cast<int8_t>(choice.scale[s]);
        b.d = choice.d;
    });
}

MOEPIC_WIDE void encode_iq4_xs(const float* in, const float* importance, std::byte* blocks, int64_t n) {
    using Choice = ScaledBlock<LevelsIq4Nl, 8, 32, -32, 31>;
    encode_blocks<Choice, BlockIQ4_XS>(in, importance, blocks, n, [](Choice& choice, BlockIQ4_XS& b) {
        choice.encode(targets_iq4_xs, peaks_signed_6_bit);
        for (int s = 0; s < 8; ++s) {
            for (int i = 0; i < 16; ++i) {
                const int low = LevelsIq4Nl::code(choice.level[32 * s + i]), high = LevelsIq4Nl::code(choice.level[32 * s + i + 16]);
                b.qs[16 * s + i] = static_cast<uint8_t>(low | (high << 4));
            }
        }
        uint16_t scales_h = 0;
        std::memset(b.scales_l, 0, sizeof b.scales_l);
        for (int s = 0; s < 8; ++s) {
            const int scale = choice.scale[s] + 32;
            b.scales_l[s / 2] = static_cast<uint8_t>(b.scales_l[s / 2] | ((scale & 15) << (4 * (s % 2))));
            scales_h = static_cast<uint16_t>(scales_h | ((scale >> 4) << (2 * s)));
        }
        b.scales_h = scales_h;
        b.d = choice.d;
    });
}

}  // namespace moepic::codec
