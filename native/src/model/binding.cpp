#include "model/binding.h"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <unordered_set>

#include "base/error.h"
#include "base/log.h"

namespace moepic {
namespace {

std::string shape_text(std::initializer_list<int64_t> shape) {
    std::string text = "[";
    for (int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
    return text + "]";
}

std::string shape_text(const gguf::Tensor& tensor) {
    std::string text = "[";
    for (uint32_t i = 0; i < tensor.n_dims; ++i) text += (i ? ", " : "") + std::to_string(tensor.ne[i]);
    return text + "]";
}

class Binder {
public:
    Binder(const gguf::File& file, const Config& config) : file_(file), config_(config) {}

    ModelBinding bind() {
        ModelBinding model;
        model.token_embd = need("token_embd.weight", {config_.n_embd, config_.n_vocab});
        model.output_norm = need_floats(cat(config_.recipe->output_norm, ".weight"), config_.n_embd);
        model.output = take("output.weight", {config_.n_embd, config_.n_vocab});
        if (!model.output) model.output = model.token_embd;
        model.rope_freqs = take_floats("rope_freqs.weight", config_.rope.n_rot / 2);
        bind_model_extras(model);
        for (int64_t il = 0; il < config_.n_layer; ++il) model.layers.push_back(bind_layer(il));
        refuse_leftovers();
        return model;
    }

private:
    // Biases and divisors beside the model's own tensors.
    void bind_model_extras(ModelBinding& model) {
        const Recipe& recipe = *config_.recipe;
        if (recipe.norm == NormKind::layer) model.output_norm_bias = need_floats("output_norm.bias", config_.n_embd);
        if (recipe.output_bias != Presence::never) model.output_bias = take_floats("output.bias", config_.n_vocab);
        if (config_.rope.scaling == RopeScaling::long_short) {
            model.rope_long = need_floats("rope_factors_long.weight", config_.rope.n_rot / 2);
            model.rope_short = need_floats("rope_factors_short.weight", config_.rope.n_rot / 2);
        }
        if (recipe.rope_divisors && !model.rope_freqs) {
            fail(Code::format, "model: tensor 'rope_freqs.weight' is missing; architecture '", recipe.arch,
                 "' turns only a part of its frequencies with it");
        }
    }

    // Norms and scales around attention and feed-forward that few families have.
    void bind_layer_extras(const std::string& blk, const LayerConfig& c, LayerBinding& layer) {
        const Recipe& recipe = *config_.recipe;
        if (recipe.norm == NormKind::layer) {
            layer.attn_norm_bias = need_floats(blk + "attn_norm.bias", config_.n_embd);
            layer.ffn_norm_bias = need_floats(cat(blk, recipe.ffn_norm, ".bias"), config_.n_embd);
        }
        if (recipe.post_norms) {
            layer.post_attention_norm = need_floats(blk + "post_attention_norm.weight", config_.n_embd);
            layer.post_ffn_norm = need_floats(blk + "post_ffw_norm.weight", config_.n_embd);
        }
        if (!recipe.two_branches) return;
        layer.output_scale = take_floats(blk + "layer_output_scale.weight", 1);
        if (c.n_expert == 0) return;
        layer.expert_norm = need_floats(blk + "pre_ffw_norm_2.weight", config_.n_embd);
        layer.post_dense_norm = need_floats(blk + "post_ffw_norm_1.weight", config_.n_embd);
        layer.post_expert_norm = need_floats(blk + "post_ffw_norm_2.weight", config_.n_embd);
        layer.router_norm = need_floats(blk + "ffn_gate_inp.scale", config_.n_embd);
        layer.expert_scale = take_floats(blk + "ffn_down_exps.scale", c.n_expert);
    }

    LayerBinding bind_layer(int64_t il) {
        const LayerConfig& c = config_.layers[static_cast<size_t>(il)];
        const Recipe& recipe = *config_.recipe;
        const std::string blk = cat("blk.", il, ".");

        LayerBinding layer;
        layer.attn_norm = need_floats(blk + "attn_norm.weight", config_.n_embd);
        switch (c.mixer) {
            case Mixer::attention:
                recipe.latent ? bind_latent(blk, c, layer) : bind_heads(blk, c, layer);
                break;
            case Mixer::delta_net:
                bind_delta_net(blk, layer.state_mixer);
                break;
            case Mixer::short_conv:
                bind_short_conv(blk, layer.state_mixer);
                break;
        }
        if (recipe.sinks) layer.sinks = need_floats(blk + "attn_sinks.weight", c.n_head);
        layer.ffn_norm = need_floats(cat(blk, recipe.ffn_norm, ".weight"), config_.n_embd);
        bind_layer_extras(blk, c, layer);

        if (c.n_expert == 0) {
            layer.shared = bind_single(blk, "", c.n_ff);
            return layer;
        }
        layer.router = need(blk + "ffn_gate_inp.weight", {config_.n_embd, c.n_expert});
        layer.routed = bind_experts(blk, c);
        if (recipe.selection_bias != Presence::never) layer.selection_bias = take_floats(blk + "exp_probs_b.bias", c.n_expert);
        if (recipe.selection_bias == Presence::required && !layer.selection_bias) {
            fail(Code::format, "model: tensor '", blk, "exp_probs_b.bias' is missing; architecture '", recipe.arch,
                 "' chooses experts with it");
        }
        if (recipe.expert_bias) {
            layer.router_bias = need_floats(blk + "ffn_gate_inp.bias", c.n_expert);
            layer.routed->down_bias = need_biases(blk + "ffn_down_exps.bias", config_.n_embd, c.n_expert);
        }
        if (c.n_ff_shared > 0) {
            layer.shared = bind_single(blk, recipe.two_branches ? "" : "_shexp", c.n_ff_shared);
            if (recipe.shared == SharedExpert::gated) {
                layer.shared_gate = need_floats(blk + "ffn_gate_inp_shexp.weight", config_.n_embd);
            }
        }
        return layer;
    }

    void bind_heads(const std::string& blk, const LayerConfig& c, LayerBinding& layer) {
        const Recipe& recipe = *config_.recipe;
        const int64_t q_rows = c.n_head * c.head_dim_k, k_rows = c.n_head_kv * c.head_dim_k, v_rows = c.n_head_kv * c.head_dim_v;
        layer.wq = need(blk + "attn_q.weight", {config_.n_embd, recipe.gated_attention ? 2 * q_rows : q_rows});
        layer.wk = need(blk + "attn_k.weight", {config_.n_embd, k_rows});
        layer.wv = take(blk + "attn_v.weight", {config_.n_embd, v_rows});
        if (!layer.wv && !(recipe.value_from_key && k_rows == v_rows)) need(blk + "attn_v.weight", {config_.n_embd, v_rows});
        layer.wo = need(blk + "attn_output.weight", {c.n_head * c.head_dim_v, config_.n_embd});
        if (recipe.qkv_bias != Presence::never) {
            layer.bq = take_floats(blk + "attn_q.bias", q_rows);
            layer.bk = take_floats(blk + "attn_k.bias", k_rows);
            layer.bv = take_floats(blk + "attn_v.bias", v_rows);
            layer.bo = take_floats(blk + "attn_output.bias", config_.n_embd);
            if (recipe.qkv_bias == Presence::required && !(layer.bq && layer.bk && layer.bv)) {
                fail(Code::format, "model: tensor '", blk, "attn_{q,k,v}.bias' is missing; architecture '", recipe.arch,
                     "' has these biases");
            }
        }
        if (recipe.qk_norm == QkNorm::per_head || recipe.qk_norm == QkNorm::whole) {
            const bool whole = recipe.qk_norm == QkNorm::whole;
            const int64_t q_width = whole ? q_rows : c.head_dim_k, k_width = whole ? k_rows : c.head_dim_k;
            if (!recipe.qk_norm_optional || file_.find_tensor(blk + "attn_q_norm.weight")) {
                layer.q_norm = need_floats(blk + "attn_q_norm.weight", q_width);
                layer.k_norm = need_floats(blk + "attn_k_norm.weight", k_width);
            }
        }
    }

    void bind_latent(const std::string& blk, const LayerConfig& c, LayerBinding& layer) {
        const LatentConfig& latent = config_.latent;
        const int64_t q_rows = c.n_head * (latent.plain + config_.rope.n_rot);
        if (latent.q_rank) {
            layer.wq_a = need(blk + "attn_q_a.weight", {config_.n_embd, latent.q_rank});
            layer.q_norm = need_floats(blk + "attn_q_a_norm.weight", latent.q_rank);
            layer.wq = need(blk + "attn_q_b.weight", {latent.q_rank, q_rows});
        } else {
            layer.wq = need(blk + "attn_q.weight", {config_.n_embd, q_rows});
        }
        layer.wk = need(blk + "attn_kv_a_mqa.weight", {config_.n_embd, c.head_dim_k});
        layer.k_norm = need_floats(blk + "attn_kv_a_norm.weight", latent.kv_rank);
        if (latent.joined) {
            layer.wkv_b = need(blk + "attn_kv_b.weight", {latent.kv_rank, c.n_head * (latent.plain + latent.head_dim_v)});
        } else {
            layer.wk_b = need(blk + "attn_k_b.weight", {latent.plain, latent.kv_rank, c.n_head});
            layer.wv_b = need(blk + "attn_v_b.weight", {latent.kv_rank, latent.head_dim_v, c.n_head});
        }
        layer.wo = need(blk + "attn_output.weight", {c.n_head * latent.head_dim_v, config_.n_embd});
    }

    void bind_delta_net(const std::string& blk, StateMixerBinding& mixer) {
        const DeltaNetConfig& delta = config_.delta_net;
        if (file_.find_tensor(blk + "ssm_in.weight")) {
            fail(Code::unsupported, "model: tensor '", blk,
                 "ssm_in.weight': q, k, v and the gate in one tensor are a layout of 2025; convert the model again");
        }
        mixer.in = need(blk + "attn_qkv.weight", {config_.n_embd, delta.n_channels()});
        mixer.gate = need(blk + "attn_gate.weight", {config_.n_embd, delta.value_rows()});
        mixer.beta = take(blk + "ssm_ba.weight", {config_.n_embd, 2 * delta.n_head_v});
        if (!mixer.beta) {
            mixer.beta = need(blk + "ssm_beta.weight", {config_.n_embd, delta.n_head_v});
            mixer.alpha = need(blk + "ssm_alpha.weight", {config_.n_embd, delta.n_head_v});
        }
        mixer.taps = need_floats(blk + "ssm_conv1d.weight", {delta.n_taps, delta.n_channels()});
        mixer.alpha_bias = need_floats(blk + "ssm_dt.bias", delta.n_head_v);
        mixer.rate = need_floats(blk + "ssm_a", delta.n_head_v);
        mixer.norm = need_floats(blk + "ssm_norm.weight", delta.head_dim_v);
        mixer.out = need(blk + "ssm_out.weight", {delta.value_rows(), config_.n_embd});
    }

    void bind_short_conv(const std::string& blk, StateMixerBinding& mixer) {
        mixer.in = need(blk + "shortconv.in_proj.weight", {config_.n_embd, 3 * config_.n_embd});
        mixer.taps = need_floats(blk + "shortconv.conv.weight", {config_.n_conv_taps, config_.n_embd});
        mixer.out = need(blk + "shortconv.out_proj.weight", {config_.n_embd, config_.n_embd});
    }

    // A dense feed-forward or a shared expert: 2-D tensors.
    ExpertBinding bind_single(const std::string& blk, const char* suffix, int64_t n_ff) {
        const gguf::Tensor* gate = need(cat(blk, "ffn_gate", suffix, ".weight"), {config_.n_embd, n_ff});
        const gguf::Tensor* up = need(cat(blk, "ffn_up", suffix, ".weight"), {config_.n_embd, n_ff});
        const gguf::Tensor* down = need(cat(blk, "ffn_down", suffix, ".weight"), {n_ff, config_.n_embd});
        return whole_set(1, n_ff, gate, up, down);
    }

    ExpertBinding whole_set(int64_t n_expert, int64_t n_ff, const gguf::Tensor* gate, const gguf::Tensor* up, const gguf::Tensor* down) {
        ExpertBinding set;
        set.n_expert = n_expert;
        set.n_embd = config_.n_embd;
        set.n_ff = n_ff;
        set.gate_type = Type{gate->type};
        set.up_type = Type{up->type};
        set.down_type = Type{down->type};
        set.gate = {{.tensor = gate, .first = 0, .count = n_ff, .skip = 0, .tensor_rows = n_ff}};
        set.up = {{.tensor = up, .first = 0, .count = n_ff, .skip = 0, .tensor_rows = n_ff}};
        set.down = {{.tensor = down, .first = 0, .count = n_ff, .file_granule = n_ff}};
        set.top = n_ff;
        return set;
    }

    ExpertBinding bind_experts(const std::string& blk, const LayerConfig& c) {
        const int64_t n_ff = c.n_ff, n_expert = c.n_expert;
        if (file_.find_tensor(blk + "ffn_gate_exps_top.weight") || file_.find_tensor(blk + "ffn_gate_exps_bot.weight"))
            return bind_pre_split(blk, c);
        if (file_.find_tensor(blk + "ffn_gate.0.weight")) {
            fail(Code::unsupported, "model: tensor '", blk,
                 "ffn_gate.0.weight': one tensor per expert is a layout from before 2024; rewrite the file with "
                 "'moepic-convert'");
        }
        const gguf::Tensor* down = need(blk + "ffn_down_exps.weight", {n_ff, config_.n_embd, n_expert});
        if (const gguf::Tensor* fused = take(blk + "ffn_gate_up_exps.weight", {config_.n_embd, 2 * n_ff, n_expert})) {
            ExpertBinding set = whole_set(n_expert, n_ff, fused, fused, down);
            set.gate[0].tensor_rows = set.up[0].tensor_rows = 2 * n_ff;
            set.up[0].skip = n_ff;
            if (config_.recipe->expert_bias)
                set.gate[0].bias = set.up[0].bias = need_biases(blk + "ffn_gate_up_exps.bias", 2 * n_ff, n_expert);
            return set;
        }
        const gguf::Tensor* gate = need(blk + "ffn_gate_exps.weight", {config_.n_embd, n_ff, n_expert});
        const gguf::Tensor* up = need(blk + "ffn_up_exps.weight", {config_.n_embd, n_ff, n_expert});
        ExpertBinding set = whole_set(n_expert, n_ff, gate, up, down);
        if (config_.recipe->expert_bias) {
            set.gate[0].bias = need_biases(blk + "ffn_gate_exps.bias", n_ff, n_expert);
            set.up[0].bias = need_biases(blk + "ffn_up_exps.bias", n_ff, n_expert);
        }
        return set;
    }

    // docs/design.md, section 2. Either part may be empty and then has no tensors.
    ExpertBinding bind_pre_split(const std::string& blk, const LayerConfig& c) {
        ExpertBinding set;
        set.n_expert = c.n_expert;
        set.n_embd = config_.n_embd;
        set.n_ff = c.n_ff;
        int64_t first = 0;
        for (const char* part : {"_top", "_bot"}) {
            const std::string gate_name = cat(blk, "ffn_gate_exps", part, ".weight");
            const gguf::Tensor* gate = file_.find_tensor(gate_name);
            if (!gate) continue;
            const int64_t count = static_cast<int64_t>(gate->ne[1]);
            gate = need(gate_name, {config_.n_embd, count, c.n_expert});
            const gguf::Tensor* up = need(cat(blk, "ffn_up_exps", part, ".weight"), {config_.n_embd, count, c.n_expert});
            const std::string down_name = cat(blk, "ffn_down_exps", part, ".weight");
            const gguf::Tensor* down = file_.find_tensor(down_name);
            const int64_t granule = down && down->ne[0] > 0 ? static_cast<int64_t>(down->ne[0]) : 1;
            if (count % granule) {
                fail(Code::format, "model: tensor '", down_name, "' has granules of ", granule, ", which do not divide the segment's ",
                     count, " neurons");
            }
            down = need(down_name, {granule, config_.n_embd, count / granule, c.n_expert});
            if (first == 0) {
                set.gate_type = Type{gate->type};
                set.up_type = Type{up->type};
                set.down_type = Type{down->type};
            } else if (set.gate_type != Type{gate->type} || set.up_type != Type{up->type} || set.down_type != Type{down->type}) {
                fail(Code::unsupported, "model: '", blk,
                     "ffn_*_exps_top' and '_bot' have different block types; an expert's parts must agree");
            }
            set.gate.push_back({.tensor = gate, .first = first, .count = count, .skip = 0, .tensor_rows = count});
            set.up.push_back({.tensor = up, .first = first, .count = count, .skip = 0, .tensor_rows = count});
            set.down.push_back({.tensor = down, .first = first, .count = count, .file_granule = granule});
            if (config_.recipe->expert_bias) {
                set.gate.back().bias = need_biases(cat(blk, "ffn_gate_exps", part, ".bias"), count, c.n_expert);
                set.up.back().bias = need_biases(cat(blk, "ffn_up_exps", part, ".bias"), count, c.n_expert);
            }
            first += count;
            if (std::string_view(part) == "_top") set.top = count;
        }
        if (first != c.n_ff) {
            fail(Code::format, "model: '", blk, "ffn_*_exps_top' and '_bot' have ", first, " neurons together, expected ", c.n_ff,
                 " (a shard with one of the parts missing?)");
        }
        return set;
    }

    const gguf::Tensor* take(const std::string& name, std::initializer_list<int64_t> shape) {
        const gguf::Tensor* tensor = file_.find_tensor(name);
        if (!tensor) return nullptr;
        const TypeInfo* info = find_type(tensor->type);
        if (!info) fail(Code::unsupported, "model: tensor '", name, "' has block type ", tensor->type, ", which this build can't decode");
        bool same = true;
        size_t i = 0;
        for (int64_t n : shape) same &= tensor->ne[i++] == static_cast<uint64_t>(n);
        for (; i < 4; ++i) same &= tensor->ne[i] == 1;
        if (!same)
            fail(Code::format, "model: tensor '", name, "' has shape ", shape_text(*tensor), ", expected ", shape_text(shape),
                 " (fastest first)");
        if (!tensor->data) fail(Code::format, "model: tensor '", name, "' has no data");
        used_.insert(tensor->name);
        return tensor;
    }

    const gguf::Tensor* need(const std::string& name, std::initializer_list<int64_t> shape) {
        const gguf::Tensor* tensor = take(name, shape);
        if (!tensor)
            fail(Code::format, "model: tensor '", name, "' is missing (expected shape ", shape_text(shape),
                 "; an incomplete set of shards?)");
        return tensor;
    }

    // What the engine reads as floats: vectors, and the taps of convolutions.
    const gguf::Tensor* take_floats(const std::string& name, std::initializer_list<int64_t> shape) {
        const gguf::Tensor* tensor = take(name, shape);
        if (tensor && type_info(Type{tensor->type}).block_len != 1) {
            fail(Code::unsupported, "model: tensor '", name, "' is of type ", type_info(Type{tensor->type}).name,
                 ", expected F32, F16 or BF16");
        }
        return tensor;
    }
    const gguf::Tensor* take_floats(const std::string& name, int64_t n) { return take_floats(name, {n}); }

    const gguf::Tensor* need_floats(const std::string& name, std::initializer_list<int64_t> shape) {
        const gguf::Tensor* tensor = take_floats(name, shape);
        if (!tensor) fail(Code::format, "model: tensor '", name, "' is missing (expected shape ", shape_text(shape), ")");
        return tensor;
    }
    const gguf::Tensor* need_floats(const std::string& name, int64_t n) { return need_floats(name, {n}); }

    // Biases of experts are cut by neurons and copied as they are.
    const gguf::Tensor* need_biases(const std::string& name, int64_t n, int64_t n_expert) {
        const gguf::Tensor* tensor = need(name, {n, n_expert});
        if (Type{tensor->type} != Type::f32) {
            fail(Code::unsupported, "model: tensor '", name, "' holds biases of type ", type_info(Type{tensor->type}).name,
                 ", expected F32");
        }
        return tensor;
    }

    // Blocks that predict further tokens are left out by name, and it is said; anything else unused is an error.
    bool is_nextn(std::string_view name) const {
        for (int64_t il = config_.n_layer; il < config_.n_layer + config_.n_nextn; ++il) {
            if (name.starts_with(cat("blk.", il, "."))) return true;
        }
        return false;
    }

    void refuse_leftovers() {
        size_t skipped = 0;
        for (const gguf::Tensor& tensor : file_.tensors()) {
            if (used_.contains(tensor.name)) continue;
            if (is_nextn(tensor.name)) {
                ++skipped;
                continue;
            }
            // Per-layer copies of the rope tables that old converters wrote; they are derived data.
            if (tensor.name.ends_with(".attn_rot_embd.weight") || tensor.name.ends_with(".rope_freqs.weight")) continue;
            fail(Code::unsupported, "model: tensor '", tensor.name, "' has no part in architecture '", config_.recipe->arch,
                 "' as this build knows it; running without it would give other results");
        }
        if (skipped) {
            log_message(LogLevel::info, cat("model: ", skipped, " tensors of ", config_.n_nextn,
                                            " block(s) for multi-token prediction (NextN) are not used"));
        }
    }

    const gguf::File& file_;
    const Config& config_;
    std::unordered_set<std::string_view> used_;
};

}  // namespace

ModelBinding bind_tensors(const gguf::File& file, const Config& config) {
    return Binder(file, config).bind();
}

}  // namespace moepic
