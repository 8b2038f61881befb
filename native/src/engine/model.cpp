#include "engine/model.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "engine/latent_parts.h"
#include "expert/granule.h"
#include "model/type_lookup.h"

namespace moepic {
namespace {

const ops::Kernels& choose_kernels(int isa, bool strict) {
    if (isa < 0) {
        const ops::Kernels* best = ops::find_kernels(ops::best_isa());
        if (!best) fail(Code::internal, "kernels: none for this machine");
        if (best->isa == ops::Isa::scalar) {
            const char* text =
                "kernels: this processor has neither AVX2 with FMA nor AVX-512 with VNNI; using the scalar kernels, which are many times "
                "slower";
            if (strict) fail(Code::unsupported, text);
            log_message(LogLevel::warning, text);
        }
        return *best;
    }
    if (isa > static_cast<int>(ops::Isa::avx512))
        fail(Code::argument, "isa: expected -1 (best), 0 scalar, 1 AVX2 or 2 AVX-512, found ", isa);
    const ops::Kernels* kernels = ops::find_kernels(static_cast<ops::Isa>(isa));
    if (!kernels)
        fail(Code::unsupported, "isa: this processor can't run ", ops::isa_name(static_cast<ops::Isa>(isa)), " kernels; the best here is ",
             ops::isa_name(ops::best_isa()));
    return *kernels;
}

// Rows of one matrix that a task re-tiles: a few hundred kilobytes.
constexpr int64_t kRowsPerTask = 256;

}  // namespace

// Two passes over the same code: the first, without memory, learns how much is needed; the second places and fills.
class Model::Builder {
public:
    Builder(Model& model, const LoadOptions& options) : model_(model), options_(options) {}

    void build() {
        place(nullptr);
        const size_t total = carver_.used();
        if (options_.ram_bytes && total > options_.ram_bytes) {
            fail(Code::budget, "ram: this model needs ", human_bytes(total), " (", total, " bytes) of weights in memory, the budget is ",
                 human_bytes(options_.ram_bytes), "; this build keeps every expert resident");
        }
        model_.arena_ = Region(total, "weights");
        place(model_.arena_.data());
        fill();
    }

private:
    struct Copy {  // plain bytes or floats
        const gguf::Tensor* tensor;
        std::byte* dst;
        bool to_float;
    };
    struct Tile {
        const gguf::Tensor* tensor;
        int64_t rows, cols;
        std::byte* dst;
    };
    struct Strips {
        const ExpertBinding* binding;
        const StripLayout* layout;
        std::byte* dst;
    };
    struct LatentParts {
        const gguf::Tensor* joined;
        int64_t n_head;
        std::byte *keys, *values;
    };
    // What one layer (or the rest of the model) wants filled.
    struct Batch {
        std::vector<Copy> copies;
        std::vector<Tile> tiles;
        std::vector<Strips> strips;
        std::vector<LatentParts> latent_parts;
    };

    void place(std::byte* base) {
        carver_ = Carver(base);
        batches_.assign(static_cast<size_t>(model_.config_.n_layer) + 1, {});
        const ModelBinding& b = model_.binding_;
        batch_ = &batches_.back();
        model_.embedding_type_ = Type{b.token_embd->type};
        std::byte* embedding = carver_.take<std::byte>(b.token_embd->n_bytes);
        batch_->copies.push_back({b.token_embd, embedding, false});
        model_.embedding_ = embedding;
        model_.output_norm_ = floats(b.output_norm);
        model_.rope_freqs_ = floats(b.rope_freqs);
        model_.output_norm_bias_ = floats(b.output_norm_bias);
        model_.rope_long_ = floats(b.rope_long);
        model_.rope_short_ = floats(b.rope_short);
        model_.output_ = linear(b.output, b.output_bias);
        model_.layers_.assign(b.layers.size(), {});
        for (size_t il = 0; il < b.layers.size(); ++il) {
            batch_ = &batches_[il];
            place_layer(b.layers[il], model_.layers_[il]);
        }
    }

    void place_layer(const LayerBinding& b, LayerWeights& w) {
        w.attn_norm = floats(b.attn_norm);
        w.wq = linear(b.wq, b.bq);
        w.wk = linear(b.wk, b.bk);
        if (b.wv) w.wv = linear(b.wv, b.bv);
        if (b.wq_a) w.wq_a = linear(b.wq_a, nullptr);
        if (b.wk_b) w.wk_b = linear(b.wk_b, nullptr);
        if (b.wv_b) w.wv_b = linear(b.wv_b, nullptr);
        if (b.wkv_b) place_latent_parts(b.wkv_b, w);
        w.wo = linear(b.wo, b.bo);
        w.q_norm = floats(b.q_norm);
        w.k_norm = floats(b.k_norm);
        w.sinks = floats(b.sinks);
        w.ffn_norm = floats(b.ffn_norm);
        w.attn_norm_bias = floats(b.attn_norm_bias);
        w.ffn_norm_bias = floats(b.ffn_norm_bias);
        w.post_attention_norm = floats(b.post_attention_norm);
        w.post_ffn_norm = floats(b.post_ffn_norm);
        w.expert_norm = floats(b.expert_norm);
        w.post_expert_norm = floats(b.post_expert_norm);
        w.post_dense_norm = floats(b.post_dense_norm);
        w.router_norm = floats(b.router_norm);
        w.expert_scale = floats(b.expert_scale);
        w.output_scale = floats(b.output_scale);
        if (b.router) w.router = linear(b.router, b.router_bias);
        w.selection_bias = floats(b.selection_bias);
        if (b.shared_gate) w.shared_gate = linear(b.shared_gate, nullptr);
        if (b.routed) place_experts(*b.routed, w.routed, true);
        if (b.shared) place_experts(*b.shared, w.shared, false);
    }

    void place_latent_parts(const gguf::Tensor* joined, LayerWeights& w) {
        const LatentConfig& latent = model_.config_.latent;
        const int64_t n_head = static_cast<int64_t>(joined->ne[1]) / (latent.plain + latent.head_dim_v);
        w.wk_b.w = latent_keys_shape(latent, n_head);
        w.wv_b.w = latent_values_shape(latent, n_head, Type{joined->type});
        std::byte* keys = carver_.take<std::byte>(ops::tiled_bytes(w.wk_b.w.type, w.wk_b.w.rows, w.wk_b.w.cols));
        std::byte* values = carver_.take<std::byte>(ops::tiled_bytes(w.wv_b.w.type, w.wv_b.w.rows, w.wv_b.w.cols));
        w.wk_b.w.data = keys;
        w.wv_b.w.data = values;
        batch_->latent_parts.push_back({joined, n_head, keys, values});
    }

    void place_experts(const ExpertBinding& b, std::optional<ExpertSet>& out, bool routed) {
        int64_t granule = default_granule(b.n_ff, b.down_type);
        if (routed && options_.granule) {
            check_granule(options_.granule, b.n_ff, b.down_type);
            granule = options_.granule;
        }
        ExpertSet set;
        set.layout = make_strip_layout(b, granule);
        set.n_expert = b.n_expert;
        set.top_granules = b.top / granule;
        std::byte* strips = carver_.take<std::byte>(set.layout.strip_bytes() * static_cast<size_t>(b.n_expert));
        set.strips = strips;
        set.down_bias = floats(b.down_bias);
        out = set;
        batch_->strips.push_back({&b, &out->layout, strips});
    }

    const float* floats(const gguf::Tensor* tensor) {
        if (!tensor) return nullptr;
        float* dst = carver_.take<float>(static_cast<size_t>(tensor->ne[0] * tensor->ne[1]));
        batch_->copies.push_back({tensor, reinterpret_cast<std::byte*>(dst), true});
        return dst;
    }

    Linear linear(const gguf::Tensor* tensor, const gguf::Tensor* bias) {
        const int64_t cols = static_cast<int64_t>(tensor->ne[0]), rows = static_cast<int64_t>(tensor->ne[1] * tensor->ne[2]);
        const Type type{tensor->type};
        std::byte* dst = carver_.take<std::byte>(ops::tiled_bytes(type, rows, cols));
        batch_->tiles.push_back({tensor, rows, cols, dst});
        return {{type, rows, cols, dst}, floats(bias)};
    }

    void fill() {
        ThreadPool pool(options_.n_threads);
        uint64_t done = 0;
        report(0);
        for (const Batch& batch : batches_) {
            fill_batch(batch, pool);
            done += batch_bytes(batch);
            report(std::min<uint64_t>(done, model_.arena_.size()));
        }
        report(model_.arena_.size());
    }

    static uint64_t batch_bytes(const Batch& batch) {
        uint64_t bytes = 0;
        for (const Copy& copy : batch.copies) bytes += copy.tensor->n_bytes;
        for (const Tile& tile : batch.tiles) bytes += tile.tensor->n_bytes;
        for (const LatentParts& p : batch.latent_parts) bytes += p.joined->n_bytes;
        for (const Strips& s : batch.strips) bytes += s.layout->strip_bytes() * static_cast<size_t>(s.binding->n_expert);
        return bytes;
    }

    void report(uint64_t done) {
        if (options_.progress && !options_.progress(done, model_.arena_.size())) fail(Code::cancelled, "load: cancelled");
    }

    void fill_batch(const Batch& batch, ThreadPool& pool) {
        const ops::Kernels& kernels = *model_.kernels_;
        for (const Copy& copy : batch.copies) {
            if (copy.to_float) {
                type_info(Type{copy.tensor->type})
                    .decode(copy.tensor->data, reinterpret_cast<float*>(copy.dst),
                            static_cast<int64_t>(copy.tensor->ne[0] * copy.tensor->ne[1]));
            } else {
                std::memcpy(copy.dst, copy.tensor->data, copy.tensor->n_bytes);
            }
            model_.file_.dont_need(*copy.tensor);
        }
        for (const Tile& tile : batch.tiles) {
            const Type type{tile.tensor->type};
            const size_t stride = row_bytes(type, tile.cols);
            pool.run((tile.rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
                const int64_t first = task * kRowsPerTask;
                const size_t at = static_cast<size_t>(first) * stride;  // 16 rows take 16 row_bytes in both layouts
                kernels.tile_rows(type, tile.tensor->data + at, stride, std::min(kRowsPerTask, tile.rows - first), tile.cols,
                                  tile.dst + at);
            });
            model_.file_.dont_need(*tile.tensor);
        }
        for (const LatentParts& p : batch.latent_parts) {
            fill_latent_parts(kernels, pool, *p.joined, model_.config_.latent, p.n_head, p.keys, p.values);
            model_.file_.dont_need(*p.joined);
        }
        for (const Strips& s : batch.strips) {
            std::vector<StripFiller> fillers;
            for (int i = 0; i < pool.size(); ++i) fillers.emplace_back(kernels, *s.binding, *s.layout);
            const int64_t n_granules = s.layout->n_granules;
            pool.run(s.binding->n_expert * n_granules, [&](int64_t task, int thread) {
                fillers[static_cast<size_t>(thread)].fill(task / n_granules, task % n_granules,
                                                          s.dst + static_cast<size_t>(task) * s.layout->granule_bytes);
            });
            for (const RowSegment& r : s.binding->gate) model_.file_.dont_need(*r.tensor);
            for (const RowSegment& r : s.binding->up) model_.file_.dont_need(*r.tensor);
            for (const ColumnSegment& c : s.binding->down) model_.file_.dont_need(*c.tensor);
        }
    }

    Model& model_;
    const LoadOptions& options_;
    Carver carver_;
    std::vector<Batch> batches_;
    Batch* batch_ = nullptr;
};

Model::Model(gguf::File file, const LoadOptions& options)
    : file_(std::move(file)),
      config_(read_config(file_)),
      binding_(bind_tensors(file_, config_)),
      kernels_(&choose_kernels(options.isa, options.strict)) {}

std::unique_ptr<Model> Model::load(const std::string& path, const LoadOptions& options) {
    gguf::File file = gguf::File::open(path, lookup_type);
    try {
        std::unique_ptr<Model> model(new Model(std::move(file), options));
        Builder(*model, options).build();
        return model;
    } catch (const Error& error) {  // the rooms below know keys and tensors, not where they came from
        fail(error.code(), "'", path, "': ", error.text());
    }
}

void Model::embed(int32_t token, float* out) const noexcept {
    kernels_->decode_row(embedding_type_, embedding_ + static_cast<size_t>(token) * row_bytes(embedding_type_, config_.n_embd), out,
                         config_.n_embd);
}

const float* Model::rope_divisors(int64_t n_ctx) const noexcept {
    if (config_.rope.scaling != RopeScaling::long_short) return rope_freqs_;
    // By the context, not by the position reached: keys already stored must stay as they were rotated.
    return n_ctx > config_.rope.original_context ? rope_long_ : rope_short_;
}

uint64_t Model::expert_bytes() const noexcept {
    uint64_t bytes = 0;
    for (const LayerWeights& layer : layers_) {
        if (layer.routed) bytes += layer.routed->layout.strip_bytes() * static_cast<uint64_t>(layer.routed->n_expert);
    }
    return bytes;
}

uint64_t Model::active_bytes() const noexcept {
    uint64_t bytes = weight_bytes() - expert_bytes();
    bytes -= binding_.token_embd->n_bytes;
    bytes += row_bytes(embedding_type_, config_.n_embd);
    for (size_t il = 0; il < layers_.size(); ++il) {
        if (layers_[il].routed) bytes += layers_[il].routed->layout.strip_bytes() * static_cast<uint64_t>(config_.layers[il].n_expert_used);
    }
    return bytes;
}

uint64_t Model::n_params() const noexcept {
    uint64_t n = 0;
    for (const gguf::Tensor& tensor : file_.tensors()) n += tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
    return n;
}

}  // namespace moepic
