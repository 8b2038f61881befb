#include "engine/latent_parts.h"

#include <vector>

#include "quant/types.h"

namespace moepic {

ops::TiledMatrix latent_keys_shape(const LatentConfig& latent, int64_t n_head) noexcept {
    return {Type::f32, n_head * latent.kv_rank, latent.plain, nullptr};
}

ops::TiledMatrix latent_values_shape(const LatentConfig& latent, int64_t n_head, Type type) noexcept {
    return {type, n_head * latent.head_dim_v, latent.kv_rank, nullptr};
}

void fill_latent_parts(const ops::Kernels& kernels, ThreadPool& pool, const std::byte* joined, Type type, const LatentConfig& latent,
                       int64_t n_head, std::byte* keys, std::byte* values) {
    const int64_t rank = latent.kv_rank, plain = latent.plain, wide = latent.head_dim_v;
    const size_t row = row_bytes(type, rank), turned_row = static_cast<size_t>(plain) * sizeof(float);
    struct Scratch {
        std::vector<float> row, turned;
    };
    std::vector<Scratch> scratch(static_cast<size_t>(pool.size()));
    for (Scratch& one : scratch) {
        one.row.resize(static_cast<size_t>(rank));
        one.turned.resize(static_cast<size_t>(rank * plain));
    }
    // A head's rows are whole tiles (config.cpp sees to it), so heads lie one after the other.
    pool.run(n_head, [&](int64_t h, int thread) {
        Scratch& own = scratch[static_cast<size_t>(thread)];
        const std::byte* head = joined + static_cast<size_t>(h * (plain + wide)) * row;
        for (int64_t i = 0; i < plain; ++i) {
            type_info(type).decode(head + static_cast<size_t>(i) * row, own.row.data(), rank);
            for (int64_t j = 0; j < rank; ++j) own.turned[static_cast<size_t>(j * plain + i)] = own.row[static_cast<size_t>(j)];
        }
        kernels.tile_rows(Type::f32, reinterpret_cast<const std::byte*>(own.turned.data()), turned_row, rank, plain,
                          keys + static_cast<size_t>(h * rank) * turned_row, ops::TileStores::past);
        kernels.tile_rows(type, head + static_cast<size_t>(plain) * row, row, wide, rank, values + static_cast<size_t>(h * wide) * row,
                          ops::TileStores::past);
    });
}

}  // namespace moepic
