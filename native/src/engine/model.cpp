#include "engine/model.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "engine/context.h"
#include "engine/device_model.h"
#include "engine/latent_parts.h"
#include "engine/loader.h"
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

// Left alone on a device where no budget was given: its driver, its screen and other programs need a little too.
constexpr uint64_t kDeviceMargin = uint64_t{256} << 20;

}  // namespace

// Two passes over the same code: the first, without memory, learns how much is needed; the second places and fills.
class Model::Builder {
public:
    Builder(Model& model, const LoadOptions& options) : model_(model), options_(options) {}

    void build() {
        reserve();
        fill();
        if (is_on_device()) {
            move_to_device();
        } else if (streams_) {
            start_streamer();
        }
    }

    MemoryNeeds measure() {
        if (is_on_device()) return measure_on_device();
        place();
        MemoryNeeds needs;
        const uint64_t total = weight_bytes();
        needs.experts = model_.expert_bytes();
        const bool links = options_.streaming.link_bytes_s > 0.0;
        needs.weights = total - (links ? 0 : needs.experts);
        const Context context(model_, options_.context);
        needs.kv = context.kv_bytes();
        needs.state = context.state_bytes();
        needs.scratch = context.scratch_bytes();
        const uint64_t own = context.bytes();
        needs.least = needs.weights + own;
        if (needs.experts) needs.least += Streamer::measure(stream_layers(), options_.streaming, n_threads(), false).least_bytes;
        if (!links) needs.least = std::min(needs.least, total + own);  // a model smaller than its staging
        if (options_.ram_bytes && options_.ram_bytes < needs.least) return needs;
        decide();
        needs.streams = streams_;
        needs.staging = model_.staging_bytes_;
        needs.cache = model_.cache_bytes_;
        return needs;
    }

private:
    // Address space here, memory on a device.
    void reserve() {
        place();
        decide();
        place();
        model_.weights_ = Region(carver_.used(), "weights");
        model_.host_weights_ = Region(host_carver_.used(), "weights");
        model_.strips_ = Region(strips_carver_.used(), "experts");
        model_.dense_bytes_ = carver_.used() + host_carver_.used();
        place();
        if (is_on_device()) reserve_on_device();
    }

    MemoryNeeds measure_on_device() {
        reserve();
        const Context context(model_, options_.context);
        MemoryNeeds needs;
        needs.streams = streams_;
        needs.weights = model_.weights_.size();
        needs.experts = model_.expert_bytes();
        needs.kv = context.kv_bytes();
        needs.state = context.state_bytes();
        needs.scratch = context.device_bytes() - needs.kv - needs.state;
        needs.staging = model_.staging_bytes_;
        needs.cache = model_.cache_bytes_;
        needs.least = needs.weights + context.device_bytes() + needs.staging;
        return needs;
    }

    // Whether experts are resident or streamed, and what the budget leaves for which part. Everything is known before a weight is read.
    void decide() {
        const uint64_t total = weight_bytes(), experts = model_.expert_bytes();
        const StreamOptions& s = options_.streaming;
        if (is_on_device()) return decide_on_device(total, experts);
        links_ = s.link_bytes_s > 0.0;
        model_.n_in_place_ = links_ && s.cpu_bytes_s > 0.0 ? 1 : 0;
        const uint64_t context = options_.ram_bytes ? context_bytes() : 0;
        const bool fits = !options_.ram_bytes || total + context <= options_.ram_bytes;
        if (experts == 0 || (fits && !options_.stream && !links_)) {
            if (!fits) refuse(total + context, total, context, 0);
            if (experts == 0 && (options_.stream || links_))
                fail(Code::unsupported, "this model has no routed experts, so there is nothing to stream");
            return;
        }
        streams_ = true;
        const std::vector<StreamLayer> layers = stream_layers();
        check_lengths(layers);
        needs_ = Streamer::measure(layers, s, n_threads(), false);
        const uint64_t dense = total - (links_ ? 0 : experts);  // what has to be in memory anyway
        uint64_t cache = s.cache_bytes >= 0 ? static_cast<uint64_t>(s.cache_bytes) : experts;
        if (options_.ram_bytes) {
            const uint64_t least = dense + context + needs_.least_bytes;
            if (least > options_.ram_bytes) refuse(least, dense, context, needs_.least_bytes);
            // Large buffers only where they do not take half of what could hold experts.
            const uint64_t room = options_.ram_bytes - dense - context;
            smallest_ = needs_.bytes() > room / 2;
            if (smallest_) needs_ = Streamer::measure(layers, s, n_threads(), true);
            const uint64_t left = room - needs_.bytes();
            if (s.cache_bytes >= 0 && cache > left)
                refuse(dense + context + needs_.bytes() + cache, dense, context, needs_.bytes() + cache);
            cache = std::min(cache, left);
        }
        model_.cache_bytes_ = std::min(cache, experts);
        model_.staging_bytes_ = needs_.bytes();
        log_message(LogLevel::info, cat("experts: ", human_bytes(experts), " ", links_ ? "in RAM behind an emulated link" : "in the file",
                                        ", cache ", human_bytes(model_.cache_bytes_), ", staging ", human_bytes(needs_.bytes())));
    }

    // Experts lie in RAM and go through the device's cache; what that may be is known once its other needs are.
    void decide_on_device(uint64_t total, uint64_t experts) {
        if (options_.streaming.link_bytes_s > 0.0)
            fail(Code::argument, "stream: an emulated link stands in for a device's, so it can't be used beside a device");
        if (options_.ram_bytes && total > options_.ram_bytes)
            fail(Code::budget, "ram: a model on a device keeps its experts in RAM: needs ", human_bytes(total), " (", total,
                 " bytes), the budget is ", human_bytes(options_.ram_bytes), " (", options_.ram_bytes,
                 " bytes). Raise ram, or use device='cpu', which streams experts from the file");
        streams_ = experts > 0;
        if (streams_) check_lengths(stream_layers());
    }

    // Everything but the experts gets its place on the device now, so a budget that is too small is refused before a weight is read.
    void reserve_on_device() {
        const DeviceOptions& o = options_.device;
        const device::Library& library = open_device(o.kind, o.folder);
        const device::Info info = library.open(o.index);
        model_.device_ = std::make_unique<DeviceModel>(library, info, model_.weights_, model_.weights(), o.cpu_lane, o.graphs);
        uint64_t context = 0;
        {
            const Context trial(model_, options_.context);
            context = trial.device_bytes();
        }
        const uint64_t dense = model_.weights_.size(), experts = model_.expert_bytes();
        const uint64_t frames = streams_ ? DeviceExperts::measure(stream_layers(), options_.streaming).bytes() : 0;
        const uint64_t free = info.free_bytes > kDeviceMargin ? info.free_bytes - kDeviceMargin : 0;
        const uint64_t budget = o.vram_bytes ? std::min(o.vram_bytes, info.free_bytes) : free, least = dense + context + frames;
        if (least > budget) {
            fail(Code::budget, "vram: needs ", human_bytes(least), " (", least, " bytes: weights ", human_bytes(dense), ", context ",
                 human_bytes(context), ", frames for experts ", human_bytes(frames), "), ",
                 o.vram_bytes && o.vram_bytes <= info.free_bytes ? "the budget is " : "free on the device are ", human_bytes(budget), " (",
                 budget, " bytes). Lower n_ctx or n_batch, use Q8_0 keys and values, a smaller `staging`, or device='cpu'");
        }
        const int64_t asked = options_.streaming.cache_bytes;
        uint64_t cache = std::min(experts, budget - least);
        if (asked >= 0 && static_cast<uint64_t>(asked) > cache && static_cast<uint64_t>(asked) < experts) {
            fail(Code::budget, "vram: an expert cache of ", human_bytes(static_cast<uint64_t>(asked)), " was asked for, ",
                 human_bytes(cache), " are left for it");
        }
        if (asked >= 0) cache = std::min(cache, static_cast<uint64_t>(asked));
        model_.cache_bytes_ = cache;
        model_.staging_bytes_ = frames;
        log_message(LogLevel::info, cat("device: ", info.name, ", ", human_bytes(info.free_bytes), " free: weights ", human_bytes(dense),
                                        ", context ", human_bytes(context), ", experts ", human_bytes(cache), " of ", human_bytes(experts),
                                        ", frames ", human_bytes(frames)));
    }

    void move_to_device() {
        model_.device_->upload(model_.weights_, options_.progress);
        model_.weights_ = Region();
        if (!streams_) return;
        PinnedStrips& strips = model_.device_->hold(model_.strips_, options_.device.pin_bytes);
        if (options_.strict) strips.pin(options_.progress);  // or a system that grants too little would be no error
        for (;;) {
            try {
                model_.device_->start(stream_layers(), static_cast<int64_t>(model_.cache_bytes_), options_.streaming);
                break;
            } catch (const Error& error) {  // somebody else took memory since it was asked for
                if (error.code() != Code::no_memory || options_.strict || model_.cache_bytes_ == 0) throw;
                model_.cache_bytes_ = model_.cache_bytes_ * 9 / 10;
                log_message(LogLevel::warning,
                            cat("device: the expert cache shrinks to ", human_bytes(model_.cache_bytes_), ": ", error.text()));
            }
        }
        model_.device_->experts()->warm_up(options_.progress);
        if (!options_.strict) strips.pin_beside();
    }

    bool is_on_device() const { return options_.device.kind != DeviceKind::cpu; }

    void check_lengths(const std::vector<StreamLayer>& layers) const {
        const StreamOptions& s = options_.streaming;
        size_t n_experts = 0;
        for (const StreamLayer& layer : layers) n_experts += static_cast<size_t>(layer.n_expert);
        for (const size_t n : {s.cache.top.size(), s.cache.budget.size()}) {
            if (n && n != layers.size()) fail(Code::argument, "stream: a plan for ", n, " MoE layers, the model has ", layers.size());
        }
        if (!s.profile.empty() && s.profile.size() != n_experts)
            fail(Code::argument, "stream: a profile of ", s.profile.size(), " experts, the model has ", n_experts);
    }

    [[noreturn]] void refuse(uint64_t need, uint64_t weights, uint64_t context, uint64_t staging) const {
        fail(Code::budget, "ram: needs ", human_bytes(need), " (", need, " bytes: weights ", human_bytes(weights),
             ", keys, values, states and scratch ", human_bytes(context), staging ? ", staging and expert cache " : "",
             staging ? human_bytes(staging) : "", "), the budget is ", human_bytes(options_.ram_bytes), " (", options_.ram_bytes,
             " bytes); the smallest budget that works with these options is ", need,
             " bytes. Lower n_ctx or n_batch, use Q8_0 keys and values, or raise ram");
    }

    // A context reserves address space only: its pages cost nothing until they are touched.
    uint64_t context_bytes() const {
        const Context context(model_, options_.context);
        return context.bytes();
    }

    int n_threads() const { return options_.context.n_threads ? options_.context.n_threads : ThreadPool::usable_cores(); }

    std::vector<StreamLayer> stream_layers() const {
        std::vector<StreamLayer> layers;
        for (size_t il = 0; il < model_.layers_.size(); ++il) {
            const LayerWeights& w = model_.layers_[il];
            if (!w.routed) continue;
            layers.push_back({static_cast<int32_t>(il),
                              static_cast<int>(w.routed->n_expert),
                              static_cast<int>(model_.config_.layers[il].n_expert_used),
                              {&*model_.binding_.layers[il].routed, w.routed->layout, w.routed->strips}});
        }
        return layers;
    }

    void start_streamer() {
        std::vector<std::string> paths;
        for (uint32_t i = 0; i < model_.file_.shard_count(); ++i) paths.push_back(model_.file_.shard_path(i));
        model_.streamer_ =
            std::make_unique<Streamer>(*model_.kernels_, stream_layers(), std::move(paths), static_cast<int64_t>(model_.cache_bytes_),
                                       n_threads(), smallest_, options_.streaming);
        model_.streamer_->warm_up(options_.n_threads, options_.progress);
    }

    uint64_t weight_bytes() const { return carver_.used() + host_carver_.used() + strips_carver_.used(); }

    void place() {
        carver_ = Carver(model_.weights_.data());
        host_carver_ = Carver(model_.host_weights_.data());
        strips_carver_ = Carver(model_.strips_.data());
        n_moe_ = 0;
        lists_.assign(static_cast<size_t>(model_.config_.n_layer) + 1, {});
        const ModelBinding& b = model_.binding_;
        list_ = &lists_.back();
        model_.embedding_type_ = Type{b.token_embd->type};
        std::byte* embedding = host_carver_.take<std::byte>(b.token_embd->n_bytes);
        list_->bytes.push_back({b.token_embd, embedding});
        model_.embedding_ = embedding;
        model_.output_norm_ = floats(b.output_norm);
        model_.rope_freqs_ = host_floats(b.rope_freqs);
        model_.output_norm_bias_ = floats(b.output_norm_bias);
        model_.rope_long_ = host_floats(b.rope_long);
        model_.rope_short_ = host_floats(b.rope_short);
        model_.output_ = linear(b.output, b.output_bias);
        model_.layers_.assign(b.layers.size(), {});
        for (size_t il = 0; il < b.layers.size(); ++il) {
            list_ = &lists_[il];
            place_layer(b.layers[il], model_.layers_[il]);
        }
    }

    void place_layer(const LayerBinding& b, LayerWeights& w) {
        w.attn_norm = floats(b.attn_norm);
        if (b.wq) w.wq = linear(b.wq, b.bq);
        if (b.wk) w.wk = linear(b.wk, b.bk);
        if (b.wv) w.wv = linear(b.wv, b.bv);
        if (b.wq_a) w.wq_a = linear(b.wq_a, nullptr);
        if (b.wk_b) w.wk_b = linear(b.wk_b, nullptr);
        if (b.wv_b) w.wv_b = linear(b.wv_b, nullptr);
        if (b.wkv_b) place_latent_parts(b.wkv_b, w);
        if (b.wo) w.wo = linear(b.wo, b.bo);
        if (b.state_mixer.in) place_state_mixer(b.state_mixer, w.state_mixer);
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
        w.expert_scale = host_floats(b.expert_scale);
        w.output_scale = host_floats(b.output_scale);
        if (b.router) w.router = linear(b.router, b.router_bias);
        w.selection_bias = host_floats(b.selection_bias);
        if (b.shared_gate) w.shared_gate = linear(b.shared_gate, nullptr);
        if (b.routed) {
            w.moe_layer = n_moe_++;
            place_experts(*b.routed, w.routed, true);
        }
        if (b.shared) place_experts(*b.shared, w.shared, false);
    }

    void place_state_mixer(const StateMixerBinding& b, StateMixerWeights& w) {
        w.in = linear(b.in, nullptr);
        w.out = linear(b.out, nullptr);
        if (b.gate) w.gate = linear(b.gate, nullptr);
        if (b.beta) w.beta = linear(b.beta, nullptr);
        if (b.alpha) w.alpha = linear(b.alpha, nullptr);
        w.taps = floats(b.taps, true);  // a lane is a channel
        w.alpha_bias = floats(b.alpha_bias);
        w.rate = floats(b.rate);
        w.norm = floats(b.norm);
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
        list_->latent_parts.push_back({joined, n_head, keys, values});
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
        set.down_bias = floats(b.down_bias);
        const bool is_resident = !routed || !streams_ || links_ || is_on_device();
        Carver& carver = routed ? strips_carver_ : carver_;
        std::byte* strips = is_resident ? carver.take<std::byte>(set.layout.strip_bytes() * static_cast<size_t>(b.n_expert)) : nullptr;
        set.strips = strips;
        out = set;
        if (is_resident) list_->strips.push_back({&b, &out->layout, strips});
    }

    // What the host itself reads, wherever the steps of a pass run (engine/steps.h).
    const float* host_floats(const gguf::Tensor* tensor) { return floats(tensor, false, &host_carver_); }

    const float* floats(const gguf::Tensor* tensor, bool turned = false, Carver* carver = nullptr) {
        if (!tensor) return nullptr;
        float* dst = (carver ? carver : &carver_)->take<float>(static_cast<size_t>(tensor->ne[0] * tensor->ne[1]));
        list_->floats.push_back({tensor, dst, turned});
        return dst;
    }

    Linear linear(const gguf::Tensor* tensor, const gguf::Tensor* bias) {
        const int64_t cols = static_cast<int64_t>(tensor->ne[0]), rows = static_cast<int64_t>(tensor->ne[1] * tensor->ne[2]);
        const Type type{tensor->type};
        std::byte* dst = carver_.take<std::byte>(ops::tiled_bytes(type, rows, cols));
        list_->matrices.push_back({tensor, 0, type, rows, cols, dst});
        return {{type, rows, cols, dst}, floats(bias)};
    }

    void fill() {
        Loader loader(model_.file_, *model_.kernels_, model_.config_.latent, options_.n_threads);
        uint64_t done = 0;
        report(0);
        for (const LoadList& list : lists_) {
            loader.load(list);
            done += list.file_bytes();
            report(std::min<uint64_t>(done, weight_bytes()));
        }
        report(weight_bytes());
    }

    void report(uint64_t done) {
        if (options_.progress && !options_.progress(done, weight_bytes())) fail(Code::cancelled, "load: cancelled");
    }

    Model& model_;
    const LoadOptions& options_;
    // What steps read (on a device: there); what the host reads; routed experts.
    Carver carver_, host_carver_, strips_carver_;
    std::vector<LoadList> lists_;  // of each layer, then of the rest
    LoadList* list_ = nullptr;
    int n_moe_ = 0;
    bool streams_ = false, links_ = false, smallest_ = false;
    StreamNeeds needs_;
};

Model::Model(gguf::File file, const LoadOptions& options)
    : file_(std::move(file)),
      config_(read_config(file_)),
      binding_(bind_tensors(file_, config_)),
      kernels_(&choose_kernels(options.isa, options.strict)) {}

Model::~Model() = default;

ExpertService* Model::experts() const noexcept {
    if (streamer_) return streamer_.get();
    return device_ ? device_->experts() : nullptr;
}

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

MemoryNeeds Model::measure(const std::string& path, const LoadOptions& options) {
    gguf::File file = gguf::File::open(path, lookup_type);
    try {
        Model model(std::move(file), options);
        return Builder(model, options).measure();
    } catch (const Error& error) {
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
    uint64_t bytes = dense_bytes_ - binding_.token_embd->n_bytes;
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
