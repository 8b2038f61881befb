// The two matrices of absorbed latent attention out of a file's joined one (attn_kv_b, before 2025), head by head. Rows that make values
// are kept in the file's blocks; rows that make keys are wanted turned, which no block survives, so they become floats.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/thread_pool.h"
#include "model/config.h"
#include "ops/ops.h"

namespace moepic {

// As the engine multiplies with them: [n_head * kv_rank, plain] and [n_head * head_dim_v, kv_rank].
ops::TiledMatrix latent_keys_shape(const LatentConfig& latent, int64_t n_head) noexcept;
ops::TiledMatrix latent_values_shape(const LatentConfig& latent, int64_t n_head, Type type) noexcept;

// Fills keys and values, of those shapes, from the file's bytes of a joined matrix [n_head * (plain + head_dim_v), kv_rank].
void fill_latent_parts(const ops::Kernels& kernels, ThreadPool& pool, const std::byte* joined, Type type, const LatentConfig& latent,
                       int64_t n_head, std::byte* keys, std::byte* values);

}  // namespace moepic
