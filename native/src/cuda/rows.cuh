// Sums over a row in the order of ops/cpu/vector.cpp: element i joins partial i % 16 in ascending order, then the tree of sum_lanes. So a
// sum has 16 chains that nothing can cut shorter; what a device adds is that the loads before them are wide, or many rows go at once.
#pragma once

#include "cuda/math.cuh"
#include "cuda/simt.h"

namespace moepic::device {

inline constexpr int kRowThreads = 256;
inline constexpr int64_t kStagedFloats = 2048;  // a row passes through shared memory in pieces of this
inline constexpr size_t kStagedBytes = kStagedFloats * sizeof(float);
static_assert(kStagedFloats % 16 == 0);

// The steps of a sum: s for the sum so far, v for an element.
struct AddSquare {
    __device__ float operator()(float s, float v) const { return __fmaf_rn(v, v, s); }
};
struct Add {
    __device__ float operator()(float s, float v) const { return s + v; }
};
struct AddSquareFrom {
    float centre;
    __device__ float operator()(float s, float v) const { return __fmaf_rn(v - centre, v - centre, s); }
};

// By a warp, all lanes; the two halves do the same. x(i) is element i.
template <class Step, class Element>
__device__ inline float warp_row_sum(int64_t n, Step step, Element x) {
    float sum = 0.0f;
    for (int64_t i = threadIdx.x % 16; i < n; i += 16) sum = step(sum, x(i));
    return sum_lanes(sum);
}

// By a block, all threads, through `staged` of kStagedFloats, or of n where that is less; every thread gets the sum. Threads fetch the row
// together, whole lines at a time, and the first warp runs along it. May be called again at once.
template <class Step, class Element>
__device__ inline float block_row_sum(int64_t n, float* staged, Step step, Element x) {
    float sum = 0.0f;
    for (int64_t begin = 0; begin < n; begin += kStagedFloats) {
        const int64_t here = n - begin < kStagedFloats ? n - begin : kStagedFloats;
        __syncthreads();
        for (int64_t i = threadIdx.x; i < here; i += blockDim.x) staged[i] = x(begin + i);
        __syncthreads();
        if (threadIdx.x < 32) {
            for (int64_t i = threadIdx.x % 16; i < here; i += 16) sum = step(sum, staged[i]);
        }
    }
    if (threadIdx.x < 32) {
        sum = sum_lanes(sum);
        __syncwarp();  // every lane has read its elements; a shuffle alone orders no memory
        if (threadIdx.x == 0) staged[0] = sum;
    }
    __syncthreads();
    sum = staged[0];
    __syncthreads();
    return sum;
}

// What rms_norm multiplies a row by.
__device__ inline float inverse_rms(float sum_of_squares, int64_t n, float eps) {
    return 1.0f / sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

}  // namespace moepic::device
