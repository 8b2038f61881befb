// Keys and values of new positions into the cache: Kernels::kv_store of each token.
//   k [n][k_stride], v [n][v_stride] f32; the cache f16 or q8_0 in blocks of 16 positions (ops/cpu/kv_layout.h)
//
// One block of threads per (KV head, 16 positions of one block), as many as n positions can touch, so that the two bytes that a position
// adds to a row of keys meet their neighbours in one store of a warp. Reads 4 bytes a channel and writes 2 or 1; in decode one token, so
// the launch is all there is.
#include "cuda/kv.cuh"
#include "cuda/kv.h"

namespace moepic::device {
namespace {

constexpr int kThreads = 256;

struct KvStoreArgs {
    KvStoreJob job;
    KvBlocks keys, values;
};

// Half of a warp is 16 positions for a key's channel, and 16 channels of a position for a value.
__global__ void store_halves(KvStoreArgs args) {
    const KvStoreJob& job = args.job;
    const int64_t first_pos = job.place->first_pos;
    const int64_t head = blockIdx.y, start = (first_pos / ops::kKvBlock + blockIdx.x) * ops::kKvBlock;
    const int fast = static_cast<int>(threadIdx.x % 16), slow = static_cast<int>(threadIdx.x / 16);
    const auto is_new = [&](int64_t pos) { return pos >= first_pos && pos < first_pos + job.n; };

    auto* const keys = reinterpret_cast<__half*>(args.keys.at(head, start));
    for (int64_t d = slow; d < job.kv.head_dim_k; d += kThreads / 16) {
        if (!is_new(start + fast)) break;
        const float x = job.k[(start + fast - first_pos) * job.k_stride + head * job.kv.head_dim_k + d];
        keys[d * ops::kKvBlock + fast] = __float2half_rn(x);
    }
    auto* const values = reinterpret_cast<__half*>(args.values.at(head, start));
    for (int64_t d = fast; is_new(start + slow) && d < (job.kv.head_dim_v + 15) / 16 * 16; d += 16) {
        // Padding channels are zero.
        const float* const v = job.v + (start + slow - first_pos) * job.v_stride + head * job.kv.head_dim_v;
        values[d / 16 * 256 + slow * 16 + fast] = __float2half_rn(d < job.kv.head_dim_v ? v[d] : 0.0f);
    }
}

// By a warp, a channel a lane: the code of x and, in every lane, the scale (attention.cpp, to_codes).
__device__ int8_t to_code(float x, __half& scale) {
    float largest = fabsf(x);
    for (int step = 16; step > 0; step /= 2) largest = f_max(largest, __shfl_xor_sync(kAllLanes, largest, step));
    // A value that is not finite poisons the scale, whatever the maximum made of it.
    const bool is_finite = !__any_sync(kAllLanes, !(x * 0.0f == 0.0f));
    const float wanted = largest / 127.0f;
    scale = __float2half_rn(is_finite ? f_min(wanted, 65504.0f) : NAN);
    const float d = __half2float(scale), inverse = d > 0.0f ? 1.0f / d : 0.0f;
    const float scaled = x * inverse;
    return scaled == scaled ? static_cast<int8_t>(__float2int_rn(f_max(-127.0f, f_min(127.0f, scaled)))) : int8_t{0};
}

// A warp per position and group of 32 channels, of keys and then of values.
__global__ void store_codes(KvStoreArgs args) {
    const KvStoreJob& job = args.job;
    const int64_t first_pos = job.place->first_pos;
    const int64_t head = blockIdx.y, start = (first_pos / ops::kKvBlock + blockIdx.x) * ops::kKvBlock;
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int64_t key_groups = job.kv.head_dim_k / ops::kKvGroup, groups = key_groups + job.kv.head_dim_v / ops::kKvGroup;
    for (int64_t item = threadIdx.x / 32; item < groups * ops::kKvBlock; item += kThreads / 32) {
        const int64_t place = item / groups, token = start + place - first_pos;
        if (token < 0 || token >= job.n) continue;
        const bool is_key = item % groups < key_groups;
        const int64_t g = is_key ? item % groups : item % groups - key_groups;
        const float x = is_key ? job.k[token * job.k_stride + head * job.kv.head_dim_k + g * ops::kKvGroup + lane]
                               : job.v[token * job.v_stride + head * job.kv.head_dim_v + g * ops::kKvGroup + lane];
        std::byte* const group = (is_key ? args.keys : args.values).at(head, start) + g * ops::kKvGroupBytes;
        __half scale;
        const int8_t code = to_code(x, scale);
        if (lane == 0) reinterpret_cast<__half*>(group)[place] = scale;
        const int64_t at = is_key ? lane * ops::kKvBlock + place : (lane / 16 * ops::kKvBlock + place) * ops::kKvUnit + lane % 16;
        reinterpret_cast<int8_t*>(group)[2 * ops::kKvBlock + at] = code;
    }
}

}  // namespace

int32_t kv_store(const KvStoreJob& job, Stream stream) {
    if (job.n == 0) return kOk;
    const KvStoreArgs args{job, key_blocks(job.kv), value_blocks(job.kv)};
    const int64_t blocks = (job.n + ops::kKvBlock - 2) / ops::kKvBlock + 1;
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(job.kv.n_head_kv));
    return launch(job.kv.type == ops::KvType::f16 ? store_halves : store_codes, grid, dim3(kThreads), 0, stream, args);
}

}  // namespace moepic::device
