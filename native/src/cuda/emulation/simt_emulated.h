// What simt.h promises beyond the CUDA runtime, for the emulation. simt_nvcc.h is its other half, and draws mma_s8's fragments.
#pragma once

#include <cstdint>

#include "block.h"

namespace moepic::device {

inline constexpr bool kIsEmulated = true;

template <class T>
T* shared_memory() {
    return reinterpret_cast<T*>(simt::shared_data());
}

inline void store_release(uint32_t* at, uint32_t value) {
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
}

inline void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Where where = simt::Where::current()) {
    simt::multiply_s8(d, a, b, where);
}

inline void mma_s8(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b, simt::Where where = simt::Where::current()) {
    simt::multiply_s8(d, {a[0], a[1], 0, 0}, {b, 0}, where);
}

}  // namespace moepic::device
