#include "capi/testing/matmul.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "capi/guard.h"
#include "capi/kernels_of.h"
#include "ops/cpu/activations.h"
#include "ops/ops.h"
#include "quant/blocks.h"
#include "quant/grids.h"

namespace {

using namespace moepic;

Type type_of(uint32_t id, int64_t cols) {
    const TypeInfo* info = find_type(id);
    if (info == nullptr) fail(Code::argument, "ops: no weight type has the id ", id);
    if (cols <= 0 || cols % info->block_len != 0) fail(Code::argument, "ops: ", cols, " columns are no whole blocks of ", info->name);
    return info->type;
}

template <class Body>
void timed(int repeats, double* seconds, Body body) {
    double best = std::numeric_limits<double>::max();
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        body(i);
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    if (seconds != nullptr) *seconds = best;
}

// ---- the plain reference: blocks as integers, one row and one token at a time ----

// A block as integers: weight i is d * scale[i / sub] * code[i] - dmin * min[i / sub] (+ m for Q4_1 and Q5_1).
struct PlainBlock {
    float d = 0, dmin = 0, m = 0;
    bool has_min = false, has_m = false;
    int sub = 32;
    int scale[16], min[16], code[256];
};

int nibble(const uint8_t* qs, int i) {
    return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}

int fifth(const uint8_t* qh, int i) {
    return (qh[i / 8] >> (i % 8) & 1) << 4;
}

template <class B>
B load(const std::byte* p) {
    B block;
    std::memcpy(&block, p, sizeof block);
    return block;
}

PlainBlock plain_32(Type type, const std::byte* p) {
    PlainBlock r;
    r.scale[0] = 1;
    const auto fill = [&](auto code) {
        for (int i = 0; i < 32; ++i) r.code[i] = code(i);
    };
    switch (type) {
        case Type::q4_0: {
            const auto b = load<BlockQ4_0>(p);
            r.d = f16_to_f32(b.d);
            fill([&](int i) { return nibble(b.qs, i) - 8; });
            break;
        }
        case Type::q4_1: {
            const auto b = load<BlockQ4_1>(p);
            r.d = f16_to_f32(b.d), r.m = f16_to_f32(b.m), r.has_m = true;
            fill([&](int i) { return nibble(b.qs, i); });
            break;
        }
        case Type::q5_0: {
            const auto b = load<BlockQ5_0>(p);
            r.d = f16_to_f32(b.d);
            fill([&](int i) { return (nibble(b.qs, i) | fifth(b.qh, i)) - 16; });
            break;
        }
        case Type::q5_1: {
            const auto b = load<BlockQ5_1>(p);
            r.d = f16_to_f32(b.d), r.m = f16_to_f32(b.m), r.has_m = true;
            fill([&](int i) { return nibble(b.qs, i) | fifth(b.qh, i); });
            break;
        }
        case Type::q8_0: {
            const auto b = load<BlockQ8_0>(p);
            r.d = f16_to_f32(b.d);
            fill([&](int i) { return int{b.qs[i]}; });
            break;
        }
        case Type::iq4_nl: {
            const auto b = load<BlockIQ4_NL>(p);
            r.d = f16_to_f32(b.d);
            fill([&](int i) { return int{iq4_nl_values[nibble(b.qs, i)]}; });
            break;
        }
        case Type::mxfp4: {
            const auto b = load<BlockMXFP4>(p);
            r.d = e8m0_to_f32_half(b.e);
            fill([&](int i) { return int{mxfp4_values[nibble(b.qs, i)]}; });
            break;
        }
        default:
            fail(Code::internal, "ops: not a type of 32 weights per block");
    }
    return r;
}

PlainBlock plain_256(Type type, const std::byte* p) {
    PlainBlock r;
    const auto fill = [&](auto code) {
        for (int i = 0; i < 256; ++i) r.code[i] = code(i);
    };
    const auto two_bits = [](const uint8_t* qs, int i) { return qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; };
    const auto k_nibble = [](const uint8_t* qs, int i) { return qs[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15; };
    const auto k_scales = [&](const uint8_t* packed) {
        uint8_t scales[8], mins[8];
        unpack_scales_q4_K(packed, scales, mins);
        for (int s = 0; s < 8; ++s) r.scale[s] = scales[s], r.min[s] = mins[s];
        r.has_min = true;
    };
    const auto signed_by = [](int signs, int i, int magnitude) { return signs >> i & 1 ? -magnitude : magnitude; };
    const auto eight = [&](int entry, int signs, int i) { return signed_by(signs, i, iq2_levels[entry >> (2 * i) & 3]); };
    const auto odd = [](const uint8_t* scales, int s) { return 2 * (scales[s / 2] >> (s % 2 * 4) & 15) + 1; };
    switch (type) {
        case Type::q2_k: {
            const auto b = load<BlockQ2_K>(p);
            r.d = f16_to_f32(b.d), r.dmin = f16_to_f32(b.dmin), r.has_min = true, r.sub = 16;
            for (int s = 0; s < 16; ++s) r.scale[s] = b.scales[s] & 15, r.min[s] = b.scales[s] >> 4;
            fill([&](int i) { return two_bits(b.qs, i); });
            break;
        }
        case Type::q3_k: {
            const auto b = load<BlockQ3_K>(p);
            r.d = f16_to_f32(b.d), r.sub = 16;
            int8_t scales[16];
            unpack_scales_q3_K(b.scales, scales);
            for (int s = 0; s < 16; ++s) r.scale[s] = scales[s];
            fill([&](int i) { return two_bits(b.qs, i) + 4 * (b.hmask[i % 32] >> (i / 32) & 1) - 4; });
            break;
        }
        case Type::q4_k: {
            const auto b = load<BlockQ4_K>(p);
            r.d = f16_to_f32(b.d), r.dmin = f16_to_f32(b.dmin);
            k_scales(b.scales);
            fill([&](int i) { return k_nibble(b.qs, i); });
            break;
        }
        case Type::q5_k: {
            const auto b = load<BlockQ5_K>(p);
            r.d = f16_to_f32(b.d), r.dmin = f16_to_f32(b.dmin);
            k_scales(b.scales);
            fill([&](int i) { return k_nibble(b.qs, i) | (b.qh[i % 32] >> (i / 32) & 1) << 4; });
            break;
        }
        case Type::q6_k: {
            const auto b = load<BlockQ6_K>(p);
            r.d = f16_to_f32(b.d), r.sub = 16;
            for (int s = 0; s < 16; ++s) r.scale[s] = b.scales[s];
            fill([&](int i) {
                const int half = i / 128, j = i % 128;
                const int low = b.ql[64 * half + j % 64] >> (j / 64 * 4) & 15, high = b.qh[32 * half + j % 32] >> (j / 32 * 2) & 3;
                return (low | high << 4) - 32;
            });
            break;
        }
        case Type::iq4_xs: {
            const auto b = load<BlockIQ4_XS>(p);
            r.d = f16_to_f32(b.d);
            int8_t scales[8];
            unpack_scales_iq4_XS(b.scales_h, b.scales_l, scales);
            for (int s = 0; s < 8; ++s) r.scale[s] = scales[s];
            fill([&](int i) { return int{iq4_nl_values[nibble(b.qs + i / 32 * 16, i % 32)]}; });
            break;
        }
        case Type::iq2_xxs: {
            const auto b = load<BlockIQ2_XXS>(p);
            r.d = f16_to_f32(b.d) / 8;
            for (int s = 0; s < 8; ++s) r.scale[s] = static_cast<int>(2 * (b.runs[s].signs >> 28) + 1);
            fill([&](int i) {
                const auto& run = b.runs[i / 32];
                return eight(iq2_xxs_grid[run.grid[i / 8 % 4]], eight_signs(run.signs >> (7 * (i / 8 % 4))), i % 8);
            });
            break;
        }
        case Type::iq2_xs: {
            const auto b = load<BlockIQ2_XS>(p);
            r.d = f16_to_f32(b.d) / 8, r.sub = 16;
            for (int s = 0; s < 16; ++s) r.scale[s] = odd(b.scales, s);
            fill([&](int i) { return eight(iq2_xs_grid[b.qs[i / 8] & 511], eight_signs(b.qs[i / 8] >> 9), i % 8); });
            break;
        }
        case Type::iq2_s: {
            const auto b = load<BlockIQ2_S>(p);
            r.d = f16_to_f32(b.d) / 8, r.sub = 16;
            for (int s = 0; s < 16; ++s) r.scale[s] = odd(b.scales, s);
            fill([&](int i) {
                const int high = b.qh[i / 32] >> (i / 8 % 4 * 2) & 3;
                return eight(iq2_s_grid[b.qs[i / 8] | high << 8], b.signs[i / 8], i % 8);
            });
            break;
        }
        case Type::iq3_xxs: {
            const auto b = load<BlockIQ3_XXS>(p);
            r.d = f16_to_f32(b.d) / 4;
            for (int s = 0; s < 8; ++s) r.scale[s] = static_cast<int>(2 * (b.signs[s] >> 28) + 1);
            fill([&](int i) {
                const int magnitude = iq3_xxs_levels[iq3_xxs_grid[b.qs[i / 4]] >> (i % 4 * 4) & 7];
                return signed_by(eight_signs(b.signs[i / 32] >> (7 * (i / 8 % 4))), i % 8, magnitude);
            });
            break;
        }
        case Type::iq3_s: {
            const auto b = load<BlockIQ3_S>(p);
            r.d = f16_to_f32(b.d);
            for (int s = 0; s < 8; ++s) r.scale[s] = odd(b.scales, s);
            fill([&](int i) {
                const int index = b.qs[i / 4] | (b.qh[i / 32] >> (i / 4 % 8) & 1) << 8;
                return signed_by(b.signs[i / 8], i % 8, iq3_s_levels[iq3_s_grid[index] >> (i % 4 * 4) & 7]);
            });
            break;
        }
        default:
            fail(Code::internal, "ops: not a type of 256 weights per block");
    }
    return r;
}

// Codes of one block of activations, straight from the formula in activations.h.
float plain_act(const float* x, int len, int* q) {
    float amax = 0;
    for (int i = 0; i < len; ++i) amax = std::max(amax, std::fabs(x[i]));
    const bool zero = amax < ops::kActTiny;
    for (int i = 0; i < len; ++i) q[i] = zero ? 0 : static_cast<int>(std::nearbyint(x[i] * (127.0f / amax)));
    return zero ? 0.0f : amax / 127.0f;
}

float plain_dot(Type type, const std::byte* row, int64_t cols, const float* x) {
    const TypeInfo& info = type_info(type);
    const int len = static_cast<int>(info.block_len);
    float acc = 0;
    for (int64_t k = 0; k < cols; k += len, row += info.block_bytes) {
        if (len == 1) {
            float w;
            info.decode(row, &w, 1);
            acc = std::fma(w, x[k], acc);
            continue;
        }
        int q[256];
        const float dx = plain_act(x + k, len, q);
        const PlainBlock b = len == 32 ? plain_32(type, row) : plain_256(type, row);
        int sum = 0, min_sum = 0, all = 0;
        for (int i = 0; i < len; ++i) {
            sum += b.scale[i / b.sub] * b.code[i] * q[i];
            if (b.has_min) min_sum += b.min[i / b.sub] * q[i];
            all += q[i];
        }
        if (b.has_min) acc = std::fma(b.dmin * dx, static_cast<float>(-min_sum), acc);
        acc = std::fma(b.d * dx, static_cast<float>(sum), acc);
        if (b.has_m) acc = std::fma(b.m, dx * static_cast<float>(all), acc);
    }
    return acc;
}

}  // namespace

int moepic_test_matmul_bytes(uint32_t type, int64_t rows, int64_t cols, int64_t* tiles, int64_t* acts) {
    return guard([&] {
        const Type t = type_of(type, cols);
        *tiles = static_cast<int64_t>(ops::tiled_bytes(t, rows, cols));
        *acts = static_cast<int64_t>(ops::act_bytes(ops::act_kind(t), cols));
    });
}

int moepic_test_tile(int isa, uint32_t type, const void* src, int64_t row_stride, int64_t rows, int64_t cols, void* dst, int past,
                     int repeats, double* seconds) {
    return guard([&] {
        const auto& kernels = kernels_of(isa);
        const Type t = type_of(type, cols);
        timed(repeats, seconds, [&](int) {
            kernels.tile_rows(t, static_cast<const std::byte*>(src), static_cast<size_t>(row_stride), rows, cols,
                              static_cast<std::byte*>(dst), past ? ops::TileStores::past : ops::TileStores::cached);
        });
    });
}

int moepic_test_quantize(int isa, uint32_t type, const float* x, int64_t n, int64_t cols, void* out, int repeats, double* seconds) {
    return guard([&] {
        const auto& kernels = kernels_of(isa);
        const ops::ActKind kind = ops::act_kind(type_of(type, cols));
        const size_t bytes = ops::act_bytes(kind, cols);
        timed(repeats, seconds, [&](int) {
            for (int64_t t = 0; t < n; ++t)
                kernels.quantize_act(kind, x + t * cols, cols, static_cast<std::byte*>(out) + static_cast<size_t>(t) * bytes);
        });
    });
}

int moepic_test_act_codes(uint32_t type, const void* acts, int64_t n, int64_t cols, int8_t* codes, float* scales) {
    return guard([&] {
        const ops::ActKind kind = ops::act_kind(type_of(type, cols));
        const size_t bytes = ops::act_bytes(kind, cols);
        const auto read = [&](auto block, int64_t t) {
            using B = decltype(block);
            const auto* from = reinterpret_cast<const B*>(static_cast<const std::byte*>(acts) + static_cast<size_t>(t) * bytes);
            for (int64_t b = 0; b < cols / B::len; ++b) {
                std::memcpy(codes + t * cols + b * B::len, from[b].q, B::len);
                scales[t * (cols / B::len) + b] = from[b].d;
            }
        };
        if (kind == ops::ActKind::f32) fail(Code::argument, "ops: float weights meet activations as they are");
        for (int64_t t = 0; t < n; ++t) kind == ops::ActKind::q8_32 ? read(ops::Act32{}, t) : read(ops::Act256{}, t);
    });
}

int moepic_test_matmul(int isa, const moepic_test_matmul_job* given, int repeats, int64_t cold_bytes, double* seconds) {
    return guard([&] {
        const auto& kernels = kernels_of(isa);
        ops::MatmulJob job;
        job.w = {type_of(given->type, given->cols), given->rows, given->cols, static_cast<const std::byte*>(given->tiles)};
        job.acts = static_cast<const std::byte*>(given->acts);
        job.gather = given->gather;
        job.n_tokens = given->n_tokens;
        job.y = given->y;
        job.y_stride = given->y_stride;
        job.tile_begin = given->tile_begin;
        job.tile_end = given->tile_end;
        job.bias = given->bias;
        job.accumulate = given->accumulate != 0;
        std::vector<std::byte> scratch(ops::kMatmulScratchBytes + 64);
        job.scratch = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
        const auto step = static_cast<int64_t>(ops::tiled_bytes(job.w.type, job.w.rows, job.w.cols));
        const int64_t copies = std::max<int64_t>(1, cold_bytes / step);
        timed(repeats, seconds, [&](int i) {
            job.w.data = static_cast<const std::byte*>(given->tiles) + i % copies * step;
            kernels.matmul(job);
        });
    });
}

int moepic_test_matmul_reference(uint32_t type, const void* blocks, int64_t rows, int64_t cols, const float* x, int64_t n, float* y) {
    return guard([&] {
        const Type t = type_of(type, cols);
        const size_t stride = row_bytes(t, cols);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < n; ++i)
                y[i * rows + r] = plain_dot(t, static_cast<const std::byte*>(blocks) + static_cast<size_t>(r) * stride, cols, x + i * cols);
    });
}
