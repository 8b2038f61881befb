// Which table this machine can run. Compiled for the plainest machine, as is everything that runs before the choice.
#include <initializer_list>

#include "ops/ops.h"

namespace moepic::ops {

namespace scalar {
extern const Kernels kKernels;
}
#if MOEPIC_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
const Kernels* find_kernels(Isa isa) noexcept {
    switch (isa) {
        case Isa::scalar:
            return &scalar::kKernels;
#if MOEPIC_X86
        case Isa::avx2: {  // Haswell, Zen and later
            const bool ok = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
            return ok ? &avx2::kKernels : nullptr;
        }
        case Isa::avx512: {  // Ice Lake, Zen 4 and later
            const bool ok = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") &&
                            __builtin_cpu_supports("f16c");
            return ok ? &avx512::kKernels : nullptr;
        }
#endif
        default:
            return nullptr;
    }
}

Isa best_isa() noexcept {
    for (const Isa isa : {Isa::avx512, Isa::avx2})
        if (find_kernels(isa)) return isa;
    return Isa::scalar;
}

const char* isa_name(Isa isa) noexcept {
    switch (isa) {
        case Isa::scalar:
            return "scalar";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
    }
    return "unknown";
}

}  // namespace moepic::ops
