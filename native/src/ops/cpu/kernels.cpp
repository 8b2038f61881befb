// The table of one instruction set. Computes nothing.
#include "ops/cpu/kernels.h"

#include "ops/cpu/attention.h"
#include "ops/cpu/recurrence.h"
#include "ops/cpu/vector.h"

namespace moepic::ops::MOEPIC_ISA {
namespace {

void decode_row(Type type, const std::byte* row, float* out, int64_t n) {
    type_info(type).decode(row, out, n);
}

constexpr bool same(const char* a, const char* b) {
    for (; *a && *a == *b; ++a, ++b) {
    }
    return *a == *b;
}

// The name of this namespace, as a string and as the enum.
#define MOEPIC_TEXT_OF(name) #name
#define MOEPIC_TEXT(name) MOEPIC_TEXT_OF(name)
constexpr const char* kName = MOEPIC_TEXT(MOEPIC_ISA);
constexpr Isa kIsa = same(kName, "avx512") ? Isa::avx512 : same(kName, "avx2") ? Isa::avx2 : Isa::scalar;

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {
    .isa = kIsa,
    .name = kName,
    .tile_rows = tile_rows,
    .quantize_act = quantize_act,
    .matmul = matmul,
    .multiply_codes = multiply_codes,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .rope = rope,
    .glu = glu,
    .softmax = softmax,
    .sigmoid = sigmoid,
    .add = add,
    .multiply = multiply,
    .scale_add = scale_add,
    .scale = scale,
    .soft_cap = soft_cap,
    .decode_row = decode_row,
    .kv_store = kv_store,
    .attention = attention,
    .attention_join = attention_join,
    .causal_conv = causal_conv,
    .delta_rule = delta_rule,
};

}  // namespace moepic::ops::MOEPIC_ISA
