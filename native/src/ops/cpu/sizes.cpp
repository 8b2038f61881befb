// Bytes of tiles and activations, for callers who allocate. The same for every instruction set.
#include "ops/cpu/activations.h"
#include "ops/ops.h"

namespace moepic::ops {
namespace {

size_t up_to_64(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

}  // namespace

size_t tiled_bytes(Type type, int64_t rows, int64_t cols) noexcept {
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    return up_to_64(static_cast<size_t>(tiles) * kTileRows * row_bytes(type, cols));
}

ActKind act_kind(Type weights) noexcept {
    switch (type_info(weights).block_len) {
        case 1:
            return ActKind::f32;
        case 32:
            return ActKind::q8_32;
        default:
            return ActKind::q8_256;
    }
}

size_t act_bytes(ActKind kind, int64_t cols) noexcept {
    const size_t n = static_cast<size_t>(cols);
    switch (kind) {
        case ActKind::f32:
            return up_to_64(n * sizeof(float));
        case ActKind::q8_32:
            return up_to_64(n / Act32::len * sizeof(Act32));
        case ActKind::q8_256:
            return up_to_64(n / Act256::len * sizeof(Act256));
    }
    return 0;
}

}  // namespace moepic::ops
