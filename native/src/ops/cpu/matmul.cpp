// One entry for all weight types; a family answers for its own (matmul_float, matmul_32, matmul_256, matmul_grid).
#include "ops/cpu/kernels.h"

namespace moepic::ops::MOEPIC_ISA {

void matmul(const MatmulJob& given) {
    MatmulJob job = given;
    if (job.act_stride == 0) job.act_stride = act_bytes(act_kind(job.w.type), job.w.cols);
    if (matmul_32(job) || matmul_256(job) || matmul_grid(job)) return;
    matmul_float(job);
}

}  // namespace moepic::ops::MOEPIC_ISA
