// What simt.h promises beyond the CUDA runtime, for nvcc. emulation/simt_emulated.h is its other half.
#pragma once

namespace moepic::device {

inline constexpr bool kIsEmulated = false;

template <class T>
__device__ __forceinline__ T* shared_memory() {
    extern __shared__ __align__(128) unsigned char moepic_shared[];
    return reinterpret_cast<T*>(moepic_shared);
}

// Everything this thread wrote, or knows by a barrier to have been written, is visible to a host that sees the value.
__device__ __forceinline__ void store_release(uint32_t* at, uint32_t value) {
    asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

// d += a b of int8: a is 16 x 32 by rows, b is 32 x 8 by columns, d is 16 x 8. With lane = 4 g + t, as PTX lays out mma.m16n8k32:
//   a[0]: row g,     k 4t .. 4t+3     a[2]: the same row, k 16+4t ..     b[0]: k 4t .. 4t+3 of column g     d[0], d[1]: row g,   columns
//   2t, 2t+1 a[1]: row g + 8, k 4t .. 4t+3     a[3]: the same row, k 16+4t ..     b[1]: k 16+4t ..                   d[2], d[3]: row g+8
// All 32 lanes take part. sm_75 has only m8n8k16, whose fragments are quarters of these.
__device__ __forceinline__ void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int half = 0; half < 2; ++half)
        for (int k = 0; k < 2; ++k)
            asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                         : "+r"(d[2 * half]), "+r"(d[2 * half + 1])
                         : "r"(a[2 * k + half]), "r"(b[k]));
#endif
}

// The same of 16 k only: a[0], a[1] and b[0] of the above.
__device__ __forceinline__ void mma_s8(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
#else
    for (int half = 0; half < 2; ++half)
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+r"(d[2 * half]), "+r"(d[2 * half + 1])
                     : "r"(a[half]), "r"(b));
#endif
}

}  // namespace moepic::device
