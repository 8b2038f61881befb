// Kernels::scale, scale_add, add, multiply and sigmoid: an operation per element, a thread per element. Moves 8 or 12 bytes an element;
// a batch's residual is tens of kilobytes in decode, where a launch is all the time there is, and memory is the bound in prefill.
#include "cuda/elementwise.h"
#include "cuda/math.cuh"
#include "cuda/simt.h"

namespace moepic::device {
namespace {

constexpr int kThreads = 256;

// Each is y's new value from y's element and its place.
struct Scale {
    float a;
    __device__ float operator()(float y, int64_t) const { return y * a; }
};
struct ScaleAdd {
    float a;
    const float* x;
    __device__ float operator()(float y, int64_t i) const { return __fmaf_rn(a, x[i], y); }
};
struct AddTo {
    const float* x;
    __device__ float operator()(float y, int64_t i) const { return y + x[i]; }
};
struct Multiply {
    const float* x;
    __device__ float operator()(float y, int64_t i) const { return y * x[i]; }
};
struct Sigmoid {
    __device__ float operator()(float y, int64_t) const { return over_logistic(1.0f, y); }
};

template <class Op>
__global__ void each_kernel(Op op, float* y, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i < n) y[i] = op(y[i], i);
}

template <class Op>
int32_t each(Op op, float* y, int64_t n, Stream stream) {
    return launch(each_kernel<Op>, dim3(static_cast<unsigned>((n + kThreads - 1) / kThreads)), dim3(kThreads), 0, stream, op, y, n);
}

}  // namespace

int32_t scale(float* y, float a, int64_t n, Stream stream) {
    return each(Scale{a}, y, n, stream);
}
int32_t scale_add(float* y, float a, const float* x, int64_t n, Stream stream) {
    return each(ScaleAdd{a, x}, y, n, stream);
}
int32_t add(float* y, const float* x, int64_t n, Stream stream) {
    return each(AddTo{x}, y, n, stream);
}
int32_t multiply(float* y, const float* x, int64_t n, Stream stream) {
    return each(Multiply{x}, y, n, stream);
}
int32_t sigmoid(float* x, int64_t n, Stream stream) {
    return each(Sigmoid{}, x, n, stream);
}

}  // namespace moepic::device
