// The types of 256 weights whose codes are bits of the block, with or without a table of 16 values: Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS.
// What is done with them is in matmul_256.h.
#include "ops/cpu/matmul_256.h"

#include "ops/cpu/kernels.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

struct Q2_K : Type256 {
    static constexpr TileShape kShape = kTileQ2_K;
    static constexpr int kMax = 3, kSubs = 16;
    static constexpr bool kMin = true;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[4], I16x (&mn)[4]) {
        for (int j = 0; j < 4; ++j) {
            const I16x both = column(body, j);
            sc[j] = both & bytes4(0x0f);
            mn[j] = i_shr<4>(both) & bytes4(0x0f);
        }
    }
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* qs = body + (4 + r / 4 * 8) * kColumn;
        return i_shr_by(column(qs, j), r % 4 * 2) & bytes4(3);
    }
};

struct Q3_K : Type256 {
    static constexpr TileShape kShape = kTileQ3_K;
    static constexpr int kMax = 7, kSubs = 16, kOffset = 4;
    // The 12 bytes of unpack_scales_q3_K as three dwords per row.
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[4], I16x (&)[4]) {
        const I16x low = bytes4(0x0f), high = bytes4(0x30), bias = bytes4(32);
        const I16x a = column(body, 0), b = column(body, 1), c = column(body, 2);
        sc[0] = i_sub_bytes((a & low) | (i_shl<4>(c) & high), bias);
        sc[1] = i_sub_bytes((b & low) | (i_shl<2>(c) & high), bias);
        sc[2] = i_sub_bytes((i_shr<4>(a) & low) | (c & high), bias);
        sc[3] = i_sub_bytes((i_shr<4>(b) & low) | (i_shr<2>(c) & high), bias);
    }
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* hmask = body + 3 * kColumn;
        const std::byte* qs = body + (11 + r / 4 * 8) * kColumn;
        const I16x high = i_shl<2>(i_shr_by(column(hmask, j), r) & bytes4(1));
        return (i_shr_by(column(qs, j), r % 4 * 2) & bytes4(3)) | high;
    }
};

// The 12 bytes of unpack_scales_q4_K as three dwords per row.
inline void scales_and_mins(const std::byte* body, I16x (&sc)[2], I16x (&mn)[2]) {
    const I16x low = bytes4(0x0f), high = bytes4(0x30), six = bytes4(0x3f);
    const I16x a = column(body, 0), b = column(body, 1), c = column(body, 2);
    sc[0] = a & six;
    mn[0] = b & six;
    sc[1] = (c & low) | (i_shr<2>(a) & high);
    mn[1] = (i_shr<4>(c) & low) | (i_shr<2>(b) & high);
}

struct Q4_K : Type256 {
    static constexpr TileShape kShape = kTileQ4_K;
    static constexpr int kMax = 15, kSubs = 8;
    static constexpr bool kMin = true;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[2], I16x (&mn)[2]) { scales_and_mins(body, sc, mn); }
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* qs = body + (3 + r / 2 * 8) * kColumn;
        return i_shr_by(column(qs, j), r % 2 * 4) & bytes4(0x0f);
    }
};

struct Q5_K : Type256 {
    static constexpr TileShape kShape = kTileQ5_K;
    static constexpr int kMax = 31, kSubs = 8;
    static constexpr bool kMin = true;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[2], I16x (&mn)[2]) { scales_and_mins(body, sc, mn); }
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* qh = body + 3 * kColumn;
        const std::byte* qs = body + (11 + r / 2 * 8) * kColumn;
        const I16x high = i_shl<4>(i_shr_by(column(qh, j), r) & bytes4(1));
        return (i_shr_by(column(qs, j), r % 2 * 4) & bytes4(0x0f)) | high;
    }
};

struct Q6_K : Type256 {
    static constexpr TileShape kShape = kTileQ6_K;
    static constexpr int kMax = 63, kSubs = 16, kOffset = 32;
    static inline void scales(const std::byte* body, const std::byte*, I16x (&sc)[4], I16x (&)[4]) {
        for (int j = 0; j < 4; ++j) sc[j] = column(body, j);
    }
    // Run r is quarter r % 4 of half r / 4: quarters 0 and 1 are the low nibbles of 32 bytes each, 2 and 3 the high ones.
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* ql = body + (4 + r / 4 * 16 + r % 2 * 8) * kColumn;
        const std::byte* qh = body + (36 + r / 4 * 8) * kColumn;
        const I16x high = i_shl<4>(i_shr_by(column(qh, j), r % 4 * 2) & bytes4(3));
        return (i_shr_by(column(ql, j), r % 4 / 2 * 4) & bytes4(0x0f)) | high;
    }
};

struct alignas(16) Codes {
    uint8_t v[16];
    constexpr Codes(const int8_t (&values)[16], int bias) : v{} {
        for (int i = 0; i < 16; ++i) v[i] = static_cast<uint8_t>(values[i] + bias);
    }
};
constexpr Codes kIQ4Codes(iq4_nl_values, kWideBias);

struct IQ4_XS : Type256 {
    static constexpr TileShape kShape = kTileIQ4_XS;
    static constexpr int kMax = 255, kSubs = 8, kOffset = kWideBias;
    // scales_l' has its nibbles in order; two shifts of scales_h' put a bit pair into bits 4 and 5 of each byte (kScalesHigh).
    static inline void scales(const std::byte* body, const std::byte* ends, I16x (&sc)[2], I16x (&)[2]) {
        const I16x low = bytes4(0x0f), high = bytes4(0x30), bias = bytes4(32);
        const I16x l = column(body, 0), h = i_load_u16(ends + 2 * kTileRows);
        const I16x spread = h | i_shl<14>(h);
        sc[0] = i_sub_bytes((l & low) | (spread & high), bias);
        sc[1] = i_sub_bytes((i_shr<4>(l) & low) | (i_shl<4>(spread) & high), bias);
    }
    static inline I16x codes(const std::byte* body, int r, int j) {
        const std::byte* qs = body + (1 + r * 4) * kColumn;
        const I16x both = column(qs, j % 4);
        return i_lookup(i_repeat16(kIQ4Codes.v), (j < 4 ? both : i_shr<4>(both)) & bytes4(0x0f));
    }
};

}  // namespace

bool matmul_256(const MatmulJob& job) {
    switch (job.w.type) {
        case Type::q2_k:
            return run_256<Q2_K>(job);
        case Type::q3_k:
            return run_256<Q3_K>(job);
        case Type::q4_k:
            return run_256<Q4_K>(job);
        case Type::q5_k:
            return run_256<Q5_K>(job);
        case Type::q6_k:
            return run_256<Q6_K>(job);
        case Type::iq4_xs:
            return run_256<IQ4_XS>(job);
        default:
            return false;
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
