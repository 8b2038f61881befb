// All weight types of weights.cuh and codebooks.cuh by their number.
#pragma once

#include "cuda/codebooks.cuh"
#include "cuda/weights.cuh"

namespace moepic::device {

// visit(T{}). The branch is the same for a whole warp, so one kernel serves every mix of types.
template <class Visit>
__device__ __forceinline__ void with_type(Type type, Visit visit) {
    switch (type) {
        case Type::f32:
            return visit(F32{});
        case Type::f16:
            return visit(F16{});
        case Type::bf16:
            return visit(BF16{});
        case Type::q4_0:
            return visit(Q4_0{});
        case Type::q4_1:
            return visit(Q4_1{});
        case Type::q5_0:
            return visit(Q5_0{});
        case Type::q5_1:
            return visit(Q5_1{});
        case Type::q8_0:
            return visit(Q8_0{});
        case Type::q2_k:
            return visit(Q2_K{});
        case Type::q3_k:
            return visit(Q3_K{});
        case Type::q4_k:
            return visit(Q4_K{});
        case Type::q5_k:
            return visit(Q5_K{});
        case Type::q6_k:
            return visit(Q6_K{});
        case Type::iq4_nl:
            return visit(IQ4_NL{});
        case Type::iq4_xs:
            return visit(IQ4_XS{});
        case Type::mxfp4:
            return visit(MXFP4{});
        case Type::iq2_xxs:
            return visit(IQ2_XXS{});
        case Type::iq2_xs:
            return visit(IQ2_XS{});
        case Type::iq2_s:
            return visit(IQ2_S{});
        case Type::iq3_xxs:
            return visit(IQ3_XXS{});
        case Type::iq3_s:
            return visit(IQ3_S{});
    }
}

// Which form of activations (ops::ActKind, an index of Acts) a type meets.
__device__ inline int act_kind_of(Type type) {
    int kind = 0;
    with_type(type, [&](auto t) { kind = decltype(t)::kLen == 1 ? 0 : decltype(t)::kLen == 32 ? 1 : 2; });
    return kind;
}

}  // namespace moepic::device
