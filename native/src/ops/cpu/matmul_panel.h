// Many tokens against the types of 256 weights per block: unpack a block once, into L1, for all of them.
//
// Unpacking costs 4 to 8 instructions per column of codes, and where it is done in registers a column is only worth tiles * tokens dot
// products, at most 12 before registers run out. So with many tokens a block of a few tiles is unpacked into the scratch area, and every
// group of tokens reads it there; float sums of all tokens wait in scratch between blocks. Per block of 256:
//
//   unpack      codes to bytes, sub-block scales to int32                                          once per tile
//   correct     minimums into the float sums, or the offset of the codes into the integer starts   a few half-word products per token
//   add_dots    the dot products, times scales, added to the float sums                            the multiplier is the bound
//
// Corrections are a pass of their own because the long loop needs all registers: 2 x 6 sums, 2 x 6 dot products, 2 columns of codes.
//
//   scratch | codes 64 columns, scales kSubs columns, per tile | sums [token][tile][16] f32 | starts [token][tile][16] int32 |
//
// The float operations are those of Kernel256 (matmul_256.h) in the same order, so the number of tokens changes no bit.
#pragma once

#include <cstring>

#include "ops/cpu/activations.h"
#include "ops/cpu/bytes.h"
#include "ops/cpu/matmul_driver.h"

namespace moepic::ops::MOEPIC_ISA {

// The block at work in `tiles` tiles. T is one of the types that matmul_256.h describes.
template <class T, int tiles>
struct Panel {
    static constexpr int kColumns = T::kSubs / 4;
    static constexpr int64_t kTileBytes = (64 + T::kSubs) * kColumn;
    static constexpr int64_t kRoom = (static_cast<int64_t>(kMatmulScratchBytes) - tiles * kTileBytes) / (2 * tiles * kColumn);

    const MatmulJob& job;
    int64_t b = 0;                                     // which block of the row
    const std::byte *body[tiles], *ends[tiles];        // packed
    const std::byte* codes[tiles];                     // unpacked, with the scales behind
    I16x even[tiles][kColumns], odd[tiles][kColumns];  // what corrections multiply: minimums, or scales of codes with an offset
    float* sums;
    int32_t* starts;

    explicit Panel(const MatmulJob& given) : job(given) {}

    void unpack() {
        for (int i = 0; i < tiles; ++i) {
            auto* to = const_cast<std::byte*>(codes[i]);
            for (int r = 0; r < 8; ++r) {
                const auto run = T::open(body[i], r);
                each_constant<8>([&](auto j) { i_store(to + (8 * r + j()) * kColumn, T::codes(run, r, j)); });
            }
            I16x sc[kColumns], mn[kColumns];
            T::scales(body[i], ends[i], sc, mn);
            for (int j = 0; j < kColumns; ++j) {
                even[i][j] = i_even_bytes(T::kMin ? mn[j] : sc[j]);
                odd[i][j] = i_odd_bytes(T::kMin ? mn[j] : sc[j]);
                i_store(to + (64 + 4 * j) * kColumn, i_sar<24>(i_shl<24>(sc[j])));
                i_store(to + (65 + 4 * j) * kColumn, i_sar<24>(i_shl<16>(sc[j])));
                i_store(to + (66 + 4 * j) * kColumn, i_sar<24>(i_shl<8>(sc[j])));
                i_store(to + (67 + 4 * j) * kColumn, i_sar<24>(sc[j]));
            }
        }
    }

    const Act256* act(int64_t token) const {
        const int64_t row = job.gather ? job.gather[token] : token;
        return reinterpret_cast<const Act256*>(job.acts + static_cast<size_t>(row) * job.act_stride) + b;
    }

    // Token first + t is row t of sums and starts.
    void correct(int64_t first, int64_t n) {
        F16x dmin[tiles];
        for (int i = 0; i < tiles; ++i) dmin[i] = T::kMin ? half_column(ends[i], 1) : f_set(0.0f);
        for (int64_t t = 0; t < n; ++t) {
            const Act256* a = act(first + t);
            for (int i = 0; i < tiles; ++i) {
                I16x offset = i_set(0);
                for (int j = 0; j < kColumns; ++j) {
                    const int16_t* of_x = (T::kSubs == 8 ? a->sum32 : a->sum16) + 4 * j;
                    offset = i_dot_pairs(i_dot_pairs(offset, even[i][j], of_x), odd[i][j], of_x + 2);
                }
                if constexpr (T::kMin) {
                    float* sum = sums + (t * tiles + i) * kTileRows;
                    f_store(sum, f_fma(dmin[i] * f_set(a->d), f_from_i(i_set(0) - offset), f_load(sum)));
                } else {
                    i_store(starts + (t * tiles + i) * kTileRows, i_set(0) - offset * i_set(T::kOffset));
                }
            }
        }
    }

    // Tokens first .. in groups of n up to `end`; at: the row of `first` in sums and starts.
    template <int n>
    void add_dots(int64_t first, int64_t end, int64_t at) {
        constexpr int parts = T::kSubs / 8, count = 8 / parts;
        for (; first + n <= end; first += n, at += n) {
            const Act256* a[n];
            for (int t = 0; t < n; ++t) a[t] = act(first + t);
            I16x sum[tiles][n];
            for (int i = 0; i < tiles; ++i)
                for (int t = 0; t < n; ++t) sum[i][t] = T::kOffset != 0 ? i_load(starts + ((at + t) * tiles + i) * kTileRows) : i_set(0);
            for (int r = 0; r < 8; ++r) {
                each_constant<parts>([&](auto part) __attribute__((always_inline)) {
                    I16x dot[tiles][n];
                    const int8_t* q[n];
                    for (int t = 0; t < n; ++t) {
                        q[t] = a[t]->q + 32 * r + 4 * count * part();
                        for (int i = 0; i < tiles; ++i) dot[i][t] = i_set(0);
                    }
                    i_dots<T::kMax, count, tiles, n>(dot, q, [&](int i, auto j) __attribute__((always_inline)) {
                        return column(codes[i], 8 * r + count * part() + j());
                    });
                    for (int i = 0; i < tiles; ++i) {
                        const I16x scale = column(codes[i], 64 + parts * r + part());
                        for (int t = 0; t < n; ++t) sum[i][t] = sum[i][t] + dot[i][t] * scale;
                    }
                });
            }
            for (int i = 0; i < tiles; ++i) {
                const F16x d = T::scale(ends[i]);
                for (int t = 0; t < n; ++t) {
                    float* to = sums + ((at + t) * tiles + i) * kTileRows;
                    f_store(to, f_fma(d * f_set(a[t]->d), f_from_i(sum[i][t]), f_load(to)));
                }
            }
        }
        if constexpr (n > 1) {
            if (first < end) add_dots<n - 1>(first, end, at);
        }
    }
};

// All tokens against the tiles [tile, tile + tiles).
template <class T, int tiles>
void panel_tiles(const MatmulJob& job, int64_t tile) {
    using P = Panel<T, tiles>;
    const int64_t n_blocks = job.w.cols / T::kShape.len, stride = n_blocks * (T::kShape.body + T::kShape.ends);
    for (int64_t first = 0; first < job.n_tokens; first += P::kRoom) {
        const int64_t n = job.n_tokens - first < P::kRoom ? job.n_tokens - first : P::kRoom;
        P panel(job);
        std::byte* sums = job.scratch + tiles * P::kTileBytes;
        panel.sums = reinterpret_cast<float*>(sums);
        panel.starts = reinterpret_cast<int32_t*>(sums + n * tiles * kColumn);
        std::memset(sums, 0, static_cast<size_t>(n * tiles * kColumn));
        for (int i = 0; i < tiles; ++i) {
            panel.body[i] = job.w.data + (tile + i) * stride;
            panel.ends[i] = panel.body[i] + n_blocks * T::kShape.body;
            panel.codes[i] = job.scratch + i * P::kTileBytes;
        }
        for (; panel.b < n_blocks; ++panel.b) {
            panel.unpack();
            if constexpr (T::kMin || T::kOffset != 0) panel.correct(first, n);
            panel.template add_dots<kTokenGroup>(first, first + n, 0);
            for (int i = 0; i < tiles; ++i) {
                panel.body[i] += T::kShape.body;
                panel.ends[i] += T::kShape.ends;
            }
        }
        for (int64_t t = 0; t < n; ++t)
            for (int i = 0; i < tiles; ++i) finish(job, tile + i, first + t, f_load(panel.sums + (t * tiles + i) * kTileRows));
    }
}

}  // namespace moepic::ops::MOEPIC_ISA
