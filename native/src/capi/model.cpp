// moepic_model: load and describe.
#include <algorithm>

#include "capi/device_options.h"
#include "capi/handles.h"
#include "capi/stream_options.h"
#include "model/binding.h"
#include "model/recipe.h"

using namespace moepic;

void moepic_model_options_init(moepic_model_options* options) {
    if (options) *options = {sizeof(moepic_model_options), 0, -1, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
}

namespace {

LoadOptions read_load_options(const moepic_model_options& o) {
    LoadOptions options;
    options.n_threads = o.n_threads;
    options.isa = o.isa;
    options.granule = o.granule;
    options.strict = o.strict != 0;
    options.ram_bytes = o.ram_bytes;
    options.context = read_context_options(o.context);
    options.device = read_device_options(o.device);
    read_stream_options(options, o.streaming);
    return options;
}

}  // namespace

int32_t moepic_model_load(moepic_model** out, const char* path, const moepic_model_options* given) {
    return guard([&] {
        need(out, "out");
        need(path, "path");
        const moepic_model_options o = read_options(given, moepic_model_options_init, "moepic_model_options");
        LoadOptions options = read_load_options(o);
        if (o.progress) {
            options.progress = [&o](uint64_t done, uint64_t total) { return o.progress("load", done, total, o.user) == 0; };
        }
        auto handle = std::make_unique<moepic_model>();
        handle->model = Model::load(path, options);
        handle->file.file = &handle->model->file();
        *out = handle.release();
    });
}

int32_t moepic_model_memory(moepic_memory* out, const char* path, const moepic_model_options* given) {
    return guard([&] {
        need(path, "path");
        const MemoryNeeds needs =
            Model::measure(path, read_load_options(read_options(given, moepic_model_options_init, "moepic_model_options")));
        moepic_memory memory{};
        memory.streams = needs.streams;
        memory.weights = needs.weights;
        memory.experts = needs.experts;
        memory.kv = needs.kv;
        memory.state = needs.state;
        memory.scratch = needs.scratch;
        memory.staging = needs.staging;
        memory.cache = needs.cache;
        memory.least = needs.least;
        write_info(out, memory, "moepic_memory");
    });
}

void moepic_model_free(moepic_model* model) {
    delete model;
}

int32_t moepic_model_get_info(moepic_model_info* out, const moepic_model* handle) {
    return guard([&] {
        need(handle, "model");
        const Model& model = *handle->model;
        const Config& config = model.config();
        const LayerConfig& first = config.attention_layer();
        moepic_model_info info{};
        info.architecture = text_of(config.recipe->arch);
        info.n_layer = static_cast<int32_t>(config.n_layer);
        info.n_embd = static_cast<int32_t>(config.n_embd);
        info.n_vocab = static_cast<int32_t>(config.n_vocab);
        info.n_ctx_train = static_cast<int32_t>(std::min<int64_t>(config.n_ctx_train, INT32_MAX));
        info.n_head = static_cast<int32_t>(first.n_head);
        info.n_head_kv = static_cast<int32_t>(first.n_head_kv);
        info.head_dim_k = static_cast<int32_t>(first.head_dim_k);
        info.head_dim_v = static_cast<int32_t>(first.head_dim_v);
        for (const LayerConfig& layer : config.layers) {
            info.n_expert = std::max(info.n_expert, static_cast<int32_t>(layer.n_expert));
            info.n_expert_used = std::max(info.n_expert_used, static_cast<int32_t>(layer.n_expert_used));
        }
        info.kv_bytes_per_token_f16 = kv_need_f16(config).per_token;
        info.kv_window_bytes_f16 = kv_need_f16(config).in_windows;
        info.n_params = model.n_params();
        info.file_bytes = model.file().file_bytes();
        info.weight_bytes = model.weight_bytes();
        info.expert_bytes = model.expert_bytes();
        info.active_bytes = model.active_bytes();
        info.isa = model.kernels().name;
        info.streams = model.experts() != nullptr;
        info.n_moe_layer = static_cast<int32_t>(
            std::count_if(config.layers.begin(), config.layers.end(), [](const LayerConfig& l) { return l.n_expert > 0; }));
        info.cache_bytes = model.cache_bytes();
        info.staging_bytes = model.staging_bytes();
        write_info(out, info, "moepic_model_info");
    });
}

int32_t moepic_model_get_layer(moepic_layer_info* out, const moepic_model* handle, int32_t il) {
    return guard([&] {
        need(handle, "model");
        const Model& model = *handle->model;
        if (il < 0 || il >= model.config().n_layer)
            fail(Code::argument, "model: layer ", il, " is outside 0 to ", model.config().n_layer - 1);
        const LayerConfig& config = model.config().layers[static_cast<size_t>(il)];
        const LayerWeights& weights = model.layer(il);
        const ExpertSet& set = weights.routed ? *weights.routed : *weights.shared;
        moepic_layer_info info{};
        info.n_expert = static_cast<int32_t>(config.n_expert);
        info.n_expert_used = static_cast<int32_t>(config.n_expert_used);
        info.n_ff = static_cast<int32_t>(config.n_ff);
        info.granule = static_cast<int32_t>(set.layout.granule);
        info.n_granules = static_cast<int32_t>(set.layout.n_granules);
        info.top_granules = static_cast<int32_t>(set.top_granules);
        info.n_ff_shared = static_cast<int32_t>(config.n_ff_shared);
        info.gate_type = static_cast<uint32_t>(set.layout.gate_type);
        info.up_type = static_cast<uint32_t>(set.layout.up_type);
        info.down_type = static_cast<uint32_t>(set.layout.down_type);
        info.expert_bytes = set.layout.strip_bytes();
        info.device = config.device;
        write_info(out, info, "moepic_layer_info");
    });
}

int32_t moepic_model_check(const moepic_file* file) {
    return guard([&] {
        need(file, "file");
        bind_tensors(*file->file, read_config(*file->file));
    });
}

int32_t moepic_model_kv_need(uint64_t* per_token, uint64_t* in_windows, uint64_t* window, const moepic_file* file) {
    return guard([&] {
        need(per_token, "per_token");
        need(in_windows, "in_windows");
        need(window, "window");
        need(file, "file");
        const KvNeed found = kv_need_f16(read_config(*file->file));
        *per_token = found.per_token;
        *in_windows = found.in_windows;
        *window = static_cast<uint64_t>(found.window);
    });
}

const moepic_file* moepic_model_file(const moepic_model* model) {
    return model ? &model->file : nullptr;
}

const char* moepic_architectures(void) {
    return architecture_list();
}
