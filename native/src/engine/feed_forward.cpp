#include "engine/feed_forward.h"

#include <algorithm>
#include <cstring>

#include "engine/router.h"

namespace moepic {
namespace {

// Up to this many tokens each (expert, granule) leaves whole partial rows; beyond it the scratch would outgrow the second-level cache.
constexpr int64_t kFewTokens = 8;
// Entries of one expert computed together: gate and up rows of a block stay in the second-level cache.
constexpr int64_t kEntryBlock = 128;
// Columns of the output reduced by one task.
constexpr int64_t kReduceColumns = 1024;

// One token's quantized intermediate of one granule, as down wants it.
size_t intermediate_row_bytes(const StripLayout& layout) noexcept {
    return ops::act_bytes(ops::act_kind(layout.down_type), layout.granule);
}

template <class Visit>
void each_set(const LayerWeights& layer, Visit visit) {
    if (layer.routed) visit(*layer.routed, true);
    if (layer.shared) visit(*layer.shared, false);
}

}  // namespace

FeedForward::FeedForward(const Model& model, Workspace& workspace, int64_t n_batch)
    : model_(model), workspace_(workspace), n_batch_(n_batch) {
    for (int64_t il = 0; il < model.config().n_layer; ++il) {
        const LayerWeights& layer = model.layer(il);
        ActMask mask = act_mask(layer.router) | act_mask(layer.shared_gate);
        each_set(layer, [&](const ExpertSet& set, bool) {
            mask |= ActMask{1} << static_cast<int>(ops::act_kind(set.layout.gate_type));
            mask |= ActMask{1} << static_cast<int>(ops::act_kind(set.layout.up_type));
        });
        masks_.push_back(mask);
    }
    threads_.resize(static_cast<size_t>(workspace.pool().size()));
    Carver size;
    place(size);
    region_ = Region(size.used(), "feed-forward scratch");
    Carver carver(region_.data());
    place(carver);
    groups_.reserve(static_cast<size_t>(n_batch) * 2 + 1024);
}

void FeedForward::place(Carver& carver) {
    int64_t max_expert = 0, max_k = 0, max_granule = 0, few_partials = 0, many_entries = 0;
    size_t intermediate_bytes = 0, act_row = 0;
    const int64_t few = std::min(kFewTokens, n_batch_);
    for (int64_t il = 0; il < model_.config().n_layer; ++il) {
        const LayerConfig& config = model_.config().layers[static_cast<size_t>(il)];
        int64_t entries = 0, partials = 0;
        size_t quantized = 0;
        each_set(model_.layer(il), [&](const ExpertSet& set, bool routed) {
            const int64_t per_token = routed ? config.n_expert_used : 1;
            const size_t row = intermediate_row_bytes(set.layout);
            entries += per_token;
            partials += per_token * set.layout.n_granules;
            quantized += static_cast<size_t>(per_token * set.layout.n_granules) * row;
            max_granule = std::max(max_granule, set.layout.granule);
            act_row = std::max(act_row, row);
        });
        max_expert = std::max(max_expert, config.n_expert);
        max_k = std::max(max_k, config.n_expert_used);
        few_partials = std::max(few_partials, partials * few);
        many_entries = std::max(many_entries, entries * n_batch_);
        intermediate_bytes = std::max(intermediate_bytes, quantized * static_cast<size_t>(n_batch_));
    }
    const size_t n = static_cast<size_t>(n_batch_);
    router_logits_ = carver.take<float>(n * static_cast<size_t>(max_expert));
    ids_ = carver.take<int32_t>(n * static_cast<size_t>(max_k));
    weights_ = carver.take<float>(n * static_cast<size_t>(max_k));
    shared_weight_ = carver.take<float>(n);
    entry_token_ = carver.take<int32_t>(static_cast<size_t>(many_entries));
    if (model_.config().recipe->weight_on_input) entry_weight_ = carver.take<float>(static_cast<size_t>(many_entries));
    token_entry_ = carver.take<int32_t>(n * static_cast<size_t>(max_k + 1));
    const int64_t rows = std::max(few_partials, n_batch_ > kFewTokens ? many_entries : 0);
    partials_ = carver.take<float>(static_cast<size_t>(rows * model_.config().n_embd));
    intermediate_ = carver.take<std::byte>(n_batch_ > kFewTokens ? intermediate_bytes : 0);
    for (ThreadScratch& thread : threads_) {
        const size_t block = static_cast<size_t>(std::min(n_batch_, kEntryBlock));
        thread.gate = carver.take<float>(block * static_cast<size_t>(max_granule));
        thread.up = carver.take<float>(block * static_cast<size_t>(max_granule));
        thread.acts = carver.take<std::byte>(static_cast<size_t>(few) * act_row);
    }
}

void FeedForward::run(int64_t il, const Work& work, int64_t n, int64_t first_position, const Probe& probe) {
    probe_ = probe ? &probe : nullptr;
    probe_layer_ = il;
    probe_position_ = first_position;
    route(il, *work.router, n);
    make_groups(il, n);
    if (n <= kFewTokens) {
        run_few(il, work, n);
    } else {
        run_many(il, work, n);
    }
}

void FeedForward::route(int64_t il, const ActSet& acts, int64_t n) {
    const LayerWeights& layer = model_.layer(il);
    const LayerConfig& config = model_.config().layers[static_cast<size_t>(il)];
    const Projection wanted[] = {{&layer.router, router_logits_}, {&layer.shared_gate, shared_weight_}};
    const size_t from = layer.router.w.rows ? 0 : 1, to = layer.shared_gate.w.rows ? 2 : 1;
    if (from < to) workspace_.project({wanted + from, to - from}, acts, n);

    const ops::Kernels& kernels = workspace_.kernels();
    if (layer.router.w.rows) {
        const auto one = [&](int64_t t, int) {
            route_token(model_.config(), config, kernels, layer.selection_bias, router_logits_ + t * config.n_expert,
                        ids_ + t * config.n_expert_used, weights_ + t * config.n_expert_used);
            if (!layer.expert_scale) return;
            for (int64_t j = t * config.n_expert_used; j < (t + 1) * config.n_expert_used; ++j) weights_[j] *= layer.expert_scale[ids_[j]];
        };
        if (n == 1) {
            one(0, 0);
        } else {
            workspace_.pool().run(n, one);
        }
        experts_used_ += n * config.n_expert_used;
        if (probe_) {
            (*probe_)({ProbeKind::routing, il, -1, -1, probe_position_, n, config.n_expert_used, weights_, ids_});
        }
    }
    if (layer.shared_gate.w.rows) {
        kernels.sigmoid(shared_weight_, n);
    } else {
        std::fill(shared_weight_, shared_weight_ + n, 1.0f);
    }
}

void FeedForward::make_groups(int64_t il, int64_t n) {
    const LayerWeights& layer = model_.layer(il);
    const LayerConfig& config = model_.config().layers[static_cast<size_t>(il)];
    const int64_t k = config.n_expert_used;
    groups_.clear();
    int64_t entry = 0, partial = 0;
    if (layer.routed) {
        // Counting sort by expert. The group list is indexed by expert first and squeezed at the end.
        const int64_t n_expert = layer.routed->n_expert;
        groups_.resize(static_cast<size_t>(n_expert));
        for (Group& group : groups_) group.n_entries = 0;
        for (int64_t i = 0; i < n * k; ++i) ++groups_[static_cast<size_t>(ids_[i])].n_entries;
        for (int64_t e = 0; e < n_expert; ++e) {
            Group& group = groups_[static_cast<size_t>(e)];
            const int64_t count = group.n_entries;
            group = {&*layer.routed, e, entry, 0, partial, 0, true};
            entry += count;
            partial += count * layer.routed->layout.n_granules;
        }
        for (int64_t t = 0; t < n; ++t) {
            for (int64_t j = 0; j < k; ++j) {
                Group& group = groups_[static_cast<size_t>(ids_[t * k + j])];
                const int64_t at = group.first_entry + group.n_entries++;
                entry_token_[at] = static_cast<int32_t>(t);
                if (entry_weight_) entry_weight_[at] = weights_[t * k + j];
                token_entry_[t * (k + 1) + j] = static_cast<int32_t>(at);
            }
        }
        std::erase_if(groups_, [](const Group& group) { return group.n_entries == 0; });
    }
    if (layer.shared) {
        groups_.push_back({&*layer.shared, 0, entry, n, partial, 0, false});
        for (int64_t t = 0; t < n; ++t) {
            entry_token_[entry + t] = static_cast<int32_t>(t);
            token_entry_[t * (k + 1) + k] = static_cast<int32_t>(entry + t);
        }
    }
    size_t at = 0;
    for (Group& group : groups_) {
        group.intermediate_at = at;
        at += static_cast<size_t>(group.n_entries * group.set->layout.n_granules) * intermediate_row_bytes(group.set->layout);
    }
}

void FeedForward::intermediate(const Group& group, int64_t granule, int64_t first, int64_t count, const ActSet& acts, std::byte* out,
                               size_t stride, int thread) {
    const ops::Kernels& kernels = workspace_.kernels();
    const StripLayout& layout = group.set->layout;
    const std::byte* data = group.set->granule(group.expert, granule);
    const ThreadScratch& scratch = threads_[static_cast<size_t>(thread)];
    const auto multiply = [&](const ops::TiledMatrix& w, const float* bias, float* y) {
        const ops::ActKind kind = ops::act_kind(w.type);
        ops::MatmulJob job;
        job.w = w;
        job.acts = acts.data(kind);
        job.act_stride = acts.stride(kind);
        job.gather = entry_token_ + group.first_entry + first;
        job.n_tokens = count;
        job.y = y;
        job.y_stride = layout.granule;
        job.tile_end = w.n_tiles();
        job.bias = bias;
        job.scratch = workspace_.scratch(thread);
        kernels.matmul(job);
    };
    multiply(layout.gate(data), layout.gate_bias(data), scratch.gate);
    multiply(layout.up(data), layout.up_bias(data), scratch.up);
    if (entry_weight_ && group.routed) {  // both are linear in the input
        for (int64_t i = 0; i < count; ++i) {
            const float weight = entry_weight_[group.first_entry + first + i];
            kernels.scale(scratch.gate + i * layout.granule, weight, layout.granule);
            kernels.scale(scratch.up + i * layout.granule, weight, layout.granule);
        }
    }
    kernels.glu(model_.config().recipe->glu, scratch.gate, scratch.up, scratch.gate, count * layout.granule);
    if (probe_) {
        const std::lock_guard lock(probe_mutex_);
        (*probe_)({ProbeKind::expert_act, probe_layer_, group.routed ? group.expert : -1, granule, probe_position_, count, layout.granule,
                   scratch.gate, entry_token_ + group.first_entry + first});
    }
    const ops::ActKind kind = ops::act_kind(layout.down_type);
    for (int64_t i = 0; i < count; ++i)
        kernels.quantize_act(kind, scratch.gate + i * layout.granule, layout.granule, out + static_cast<size_t>(i) * stride);
}

void FeedForward::run_few(int64_t il, const Work& work, int64_t n) {
    const int64_t n_embd = model_.config().n_embd;
    tasks_.clear();
    for (size_t i = 0; i < groups_.size(); ++i) {
        for (int64_t g = 0; g < groups_[i].set->layout.n_granules; ++g) {
            tasks_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(g), 0, static_cast<int32_t>(groups_[i].n_entries)});
        }
    }
    tasks_run_ += static_cast<int64_t>(tasks_.size());
    workspace_.pool().run(static_cast<int64_t>(tasks_.size()), [&](int64_t index, int thread) {
        const Task& task = tasks_[static_cast<size_t>(index)];
        const Group& group = groups_[static_cast<size_t>(task.group)];
        const StripLayout& layout = group.set->layout;
        std::byte* row = threads_[static_cast<size_t>(thread)].acts;
        const size_t stride = intermediate_row_bytes(layout);
        intermediate(group, task.granule, 0, group.n_entries, group.routed ? *work.routed : *work.shared, row, stride, thread);
        ops::MatmulJob job;
        job.w = layout.down(group.set->granule(group.expert, task.granule));
        job.acts = row;
        job.act_stride = stride;
        job.n_tokens = group.n_entries;
        job.y = partials_ + (group.first_partial + task.granule) * n_embd;
        job.y_stride = layout.n_granules * n_embd;
        job.tile_end = job.w.n_tiles();
        job.scratch = workspace_.scratch(thread);
        workspace_.kernels().matmul(job);
    });
    const int64_t chunks = (n_embd + kReduceColumns - 1) / kReduceColumns;
    workspace_.pool().run(n * chunks, [&](int64_t task, int) {
        const int64_t begin = task % chunks * kReduceColumns;
        reduce_row(il, task / chunks, begin, std::min(begin + kReduceColumns, n_embd), true, work);
    });
}

void FeedForward::run_many(int64_t il, const Work& work, int64_t n) {
    const int64_t n_embd = model_.config().n_embd;
    const int64_t block = std::min(n_batch_, kEntryBlock);
    tasks_.clear();
    for (size_t i = 0; i < groups_.size(); ++i) {
        for (int64_t g = 0; g < groups_[i].set->layout.n_granules; ++g) {
            for (int64_t first = 0; first < groups_[i].n_entries; first += block) {
                tasks_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(g), static_cast<int32_t>(first),
                                  static_cast<int32_t>(std::min(block, groups_[i].n_entries - first))});
            }
        }
    }
    workspace_.pool().run(static_cast<int64_t>(tasks_.size()), [&](int64_t index, int thread) {
        const Task& task = tasks_[static_cast<size_t>(index)];
        const Group& group = groups_[static_cast<size_t>(task.group)];
        const StripLayout& layout = group.set->layout;
        const size_t row = intermediate_row_bytes(layout);
        std::byte* out = intermediate_ + group.intermediate_at + static_cast<size_t>(task.first * layout.n_granules + task.granule) * row;
        const ActSet& acts = group.routed ? *work.routed : *work.shared;
        intermediate(group, task.granule, task.first, task.count, acts, out, row * static_cast<size_t>(layout.n_granules), thread);
    });

    const int64_t tiles = (n_embd + ops::kTileRows - 1) / ops::kTileRows;
    const int64_t chunk = std::max<int64_t>(4, tiles / (workspace_.pool().size() * int64_t{4}) / 4 * 4);
    tasks_.clear();
    for (size_t i = 0; i < groups_.size(); ++i) {
        for (int64_t first = 0; first < tiles; first += chunk) {
            tasks_.push_back(
                {static_cast<int32_t>(i), 0, static_cast<int32_t>(first), static_cast<int32_t>(std::min(chunk, tiles - first))});
        }
    }
    workspace_.pool().run(static_cast<int64_t>(tasks_.size()), [&](int64_t index, int thread) {
        const Task& task = tasks_[static_cast<size_t>(index)];
        const Group& group = groups_[static_cast<size_t>(task.group)];
        const StripLayout& layout = group.set->layout;
        const size_t row = intermediate_row_bytes(layout);
        for (int64_t g = 0; g < layout.n_granules; ++g) {
            ops::MatmulJob job;
            job.w = layout.down(group.set->granule(group.expert, g));
            job.acts = intermediate_ + group.intermediate_at + static_cast<size_t>(g) * row;
            job.act_stride = row * static_cast<size_t>(layout.n_granules);
            job.n_tokens = group.n_entries;
            job.y = partials_ + group.first_entry * n_embd;
            job.y_stride = n_embd;
            job.tile_begin = task.first;
            job.tile_end = task.first + task.count;
            job.accumulate = g > 0;
            job.scratch = workspace_.scratch(thread);
            workspace_.kernels().matmul(job);
        }
    });
    workspace_.pool().run(n, [&](int64_t t, int) { reduce_row(il, t, 0, n_embd, false, work); });
}

// x[t] += sum of the token's experts, columns [begin, end). The order of additions is the contract; both schedules come here.
void FeedForward::reduce_row(int64_t il, int64_t t, int64_t begin, int64_t end, bool few, const Work& work) {
    const ops::Kernels& kernels = workspace_.kernels();
    const LayerWeights& layer = model_.layer(il);
    const int64_t k = model_.config().layers[static_cast<size_t>(il)].n_expert_used, n_embd = model_.config().n_embd;
    const bool weighted_input = model_.config().recipe->weight_on_input;
    const int64_t routed_granules = layer.routed ? layer.routed->layout.n_granules : 0;
    float sum[kReduceColumns], expert[kReduceColumns];
    for (int64_t from = begin; from < end; from += kReduceColumns) {
        const int64_t width = std::min(kReduceColumns, end - from);
        std::fill(sum, sum + width, 0.0f);
        const auto add_entry = [&](int64_t entry, int64_t first_partial, int64_t n_granules, const float* bias, float weight) {
            const float* y = partials_ + (few ? first_partial : entry) * n_embd + from;
            const int64_t more = few ? n_granules : 1;
            if (more > 1 || bias) {
                std::memcpy(expert, y, static_cast<size_t>(width) * sizeof(float));
                for (int64_t g = 1; g < more; ++g) kernels.add(expert, y + g * n_embd, width);
                if (bias) kernels.add(expert, bias + from, width);
                y = expert;
            }
            kernels.scale_add(sum, weight, y, width);
        };
        if (layer.routed) {
            for (int64_t j = 0; j < k; ++j) {
                const int64_t entry = token_entry_[t * (k + 1) + j];
                const float* bias = layer.routed->down_bias ? layer.routed->down_bias + ids_[t * k + j] * n_embd : nullptr;
                add_entry(entry, entry * routed_granules, routed_granules, bias, weighted_input ? 1.0f : weights_[t * k + j]);
            }
        }
        if (layer.routed && work.shared_x != work.x) {
            kernels.scale_add(work.x + t * n_embd + from, model_.config().residual_scale, sum, width);
            std::fill(sum, sum + width, 0.0f);
        }
        if (layer.shared) {
            const Group& group = groups_.back();
            add_entry(group.first_entry + t, group.first_partial + t * group.set->layout.n_granules, group.set->layout.n_granules, nullptr,
                      shared_weight_[t]);
        }
        kernels.scale_add(work.shared_x + t * n_embd + from, model_.config().residual_scale, sum, width);
    }
}

}  // namespace moepic
