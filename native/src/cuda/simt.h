// The CUDA subset that kernels of this room are written in. The same text is compiled by nvcc and, against emulation/, by g++; nothing
// here or in a kernel asks which.
//
//   __global__ void add_kernel(AddJob job) {
//       float* part = shared_memory<float>();            // the block's dynamic shared memory; there is no other kind
//       ...
//   }
//   int32_t add(const AddJob& job, Stream stream) {
//       return launch(add_kernel, dim3(n_blocks), dim3(256), 256 * sizeof(float), stream, job);
//   }
//
// Allowed: __global__, __device__ (functions and constant tables), __constant__ const tables, __launch_bounds__, __forceinline__,
//   threadIdx blockIdx blockDim gridDim, __syncthreads, __syncwarp, __shfl_sync _xor _up _down, __ballot_sync __any_sync __all_sync,
//   __dp4a, __popc __clz __ffs __byte_perm, atomicAdd/Max/Min/Exch/CAS/Or, __threadfence _block _system, __ldg __ldcs __ldcg __stcs,
//   __fmaf_rn __fadd_rn __fmul_rn __fsub_rn __fdiv_rn __fsqrt_rn, __float2int_rn, bit casts between float and int, __half with
//   __half2float and __float2half_rn, the vector types int2 .. uint4, float2, float4, and shared_memory, mma_s8 and store_release (to
//   mapped memory) of simt_nvcc.h.
// Not allowed, because the emulation has no meaning for it: <<<>>>, __shared__, cooperative groups, textures, __activemask, and a
//   thread that leaves before a __syncthreads or a warp collective which others still reach (the emulation reports it).
// Never written: a * b + c where the contract wants it fused (say __fmaf_rn) or unfused (both compilers have contraction off).
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "device/api.h"

namespace moepic::device {

inline constexpr unsigned kAllLanes = 0xffffffffu;
// Dynamic shared memory that every target architecture (sm_75 has the least) grants to a block, and without asking.
inline constexpr size_t kMostSharedBytes = size_t{64} << 10, kUnaskedSharedBytes = size_t{48} << 10;

// Turns a CUDA result into a code of the table; `what` and CUDA's text become last_error(). runtime.cu
int32_t check(cudaError_t result, const char* what);
int32_t refuse(int32_t code, const char* text);

inline cudaStream_t native(Stream stream) {
    return reinterpret_cast<cudaStream_t>(stream);
}

// Runs kernel(args...) on a grid; arguments are copied. A grid without blocks is nothing to do.
template <class... Params, class... Args>
int32_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, const Args&... args) {
    static_assert((sizeof(Params) + ... + 0) <= 4096, "arguments of a kernel are at most 4 KiB");
    static_assert((std::is_trivially_copyable_v<Params> && ...), "arguments of a kernel are copied as bytes");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return kOk;
    if (shared_bytes > kUnaskedSharedBytes) {
        const cudaError_t result = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                        static_cast<int>(shared_bytes));
        if (result != cudaSuccess) return check(result, "asking for shared memory of a kernel");
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = native(stream);
    return check(cudaLaunchKernelEx(&config, kernel, args...), "launching a kernel");
}

}  // namespace moepic::device

#ifdef __CUDACC__
#include "cuda/simt_nvcc.h"
#else
#include "simt_emulated.h"
#endif
