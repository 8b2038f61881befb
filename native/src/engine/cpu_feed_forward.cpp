#include "engine/cpu_feed_forward.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "engine/norm.h"
#include "engine/router.h"

namespace moepic {
namespace {

// Up to this many tokens each (expert, granule) leaves whole partial rows; beyond it the scratch would outgrow the second-level cache.
constexpr int64_t kFewTokens = Streamer::kFewTokens;
// Entries of one expert computed together: gate and up rows of a block stay in the second-level cache.
constexpr int64_t kEntryBlock = 128;
// Columns of the output reduced by one task.
constexpr int64_t kReduceColumns = 1024;

}  // namespace

CpuFeedForward::CpuFeedForward(const Model& model, Workspace& workspace, int64_t n_batch)
    : FeedForward(model), workspace_(workspace), n_batch_(n_batch) {
    threads_.resize(static_cast<size_t>(workspace.n_threads()));
    Carver size;
    place(size);
    region_ = Region(size.used(), "feed-forward scratch");
    Carver carver(region_.data());
    place(carver);
    groups_.reserve(static_cast<size_t>(n_batch) * 2 + 1024);
}

void CpuFeedForward::place(Carver& carver) {
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
    ActMask routers = 0;
    for (int64_t il = 0; il < model_.config().n_layer; ++il) routers |= act_mask(model_.layer(il).router);
    guess_acts_.reserve(carver, routers, model_.config().n_embd, 1);
    guess_x_.resize(static_cast<size_t>(model_.config().n_embd));
    guess_logits_.resize(static_cast<size_t>(max_expert));
    guess_weights_.resize(static_cast<size_t>(max_k));
    guess_ids_.resize(static_cast<size_t>(max_k));
}

void CpuFeedForward::run(int64_t il, const Work& work, int64_t n, int64_t first_position, const Probe& probe) {
    probe_ = probe ? &probe : nullptr;
    probe_layer_ = il;
    probe_position_ = first_position;
    const int64_t start = timeline_.is_on() ? now_ns() : 0;
    route(il, *work.router, n);
    make_groups(il, n);
    const int64_t routed = timeline_.is_on() ? now_ns() : 0;
    if (model_.streamer() && model_.layer(il).routed) {
        stream(il, work, n);
    } else if (n <= kFewTokens) {
        run_few(il, work, n);
    } else {
        run_many(il, work, n);
    }
    if (timeline_.is_on()) {
        const auto layer = static_cast<int32_t>(il);
        timeline_.record({.start_ns = start, .end_ns = routed, .position = first_position, .kind = Span::router, .layer = layer});
        timeline_.record({.start_ns = routed, .end_ns = now_ns(), .position = first_position, .kind = Span::experts, .layer = layer});
    }
}

void CpuFeedForward::route(int64_t il, const ActSet& acts, int64_t n) {
    const LayerWeights& layer = model_.layer(il);
    const LayerConfig& config = model_.config().layers[static_cast<size_t>(il)];
    device::MatmulList wanted;
    if (layer.router.w.rows) wanted.jobs[wanted.n_jobs++] = matmul_job(layer.router, acts, router_logits_);
    if (layer.shared_gate.w.rows) wanted.jobs[wanted.n_jobs++] = matmul_job(layer.shared_gate, acts, shared_weight_);
    wanted.n_tokens = n;
    workspace_.matmul(wanted);

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
        for (int64_t t = 0; is_forced() && t < n; ++t) {
            const int64_t k = config.n_expert_used;
            std::copy_n(forced_ids(layer.moe_layer, probe_position_ + t, k), k, ids_ + t * k);
            std::fill_n(weights_ + t * k, k, 1.0f / static_cast<float>(k));
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

void CpuFeedForward::make_groups(int64_t il, int64_t n) {
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
            group = {&*layer.routed, e, entry, 0, partial, 0, true, nullptr};
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
        groups_.push_back({&*layer.shared, 0, entry, n, partial, 0, false, nullptr});
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

void CpuFeedForward::intermediate(const Group& group, int64_t granule, const std::byte* data, int64_t first, int64_t count,
                                  const Work& work, std::byte* out, size_t stride, int thread) {
    const ops::Kernels& kernels = workspace_.kernels();
    const StripLayout& layout = group.set->layout;
    const Acts& acts = (group.routed ? work.routed : work.shared)->acts();
    const int64_t entry = group.first_entry + first;
    GranuleInput input;
    std::copy_n(acts.data, kActKinds, input.acts);
    std::copy_n(acts.stride, kActKinds, input.act_stride);
    input.rows = entry_token_ + entry;
    input.entry_weight = entry_weight_ && group.routed ? entry_weight_ + entry : nullptr;
    input.n = count;
    input.glu = model_.config().recipe->glu;
    const GranuleScratch scratch = scratch_of(thread);
    activate_granule(kernels, layout, data, input, scratch);
    if (probe_) {
        const std::lock_guard lock(probe_mutex_);
        (*probe_)({ProbeKind::expert_act, probe_layer_, group.routed ? group.expert : -1, granule, probe_position_, count, layout.granule,
                   scratch.gate, input.rows});
    }
    quantize_granule(kernels, layout, count, scratch, out, stride);
}

GranuleScratch CpuFeedForward::scratch_of(int thread) const noexcept {
    const ThreadScratch& own = threads_[static_cast<size_t>(thread)];
    return {own.gate, own.up, workspace_.scratch(thread)};
}

void CpuFeedForward::compute_few(const Group& group, int64_t granule, const std::byte* data, const Work& work, int thread) {
    const int64_t n_embd = model_.config().n_embd;
    const StripLayout& layout = group.set->layout;
    std::byte* rows = threads_[static_cast<size_t>(thread)].acts;
    const size_t stride = intermediate_row_bytes(layout);
    intermediate(group, granule, data, 0, group.n_entries, work, rows, stride, thread);
    project_granule(workspace_.kernels(), layout, data, group.n_entries, rows, stride, partials_ + (group.first_partial + granule) * n_embd,
                    layout.n_granules * n_embd, workspace_.scratch(thread));
}

void CpuFeedForward::run_few(int64_t il, const Work& work, int64_t n) {
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
        compute_few(group, task.granule, group.granule(task.granule), work, thread);
    });
    reduce(il, work, n, true);
}

void CpuFeedForward::run_many(int64_t il, const Work& work, int64_t n) {
    parts_.clear();
    for (size_t i = 0; i < groups_.size(); ++i)
        parts_.push_back({static_cast<int32_t>(i), 0, static_cast<int32_t>(groups_[i].set->layout.n_granules)});
    compute_many(work);
    reduce(il, work, n, false);
}

// The parts of parts_: intermediates, then down. Parts of one group ascend from call to call.
void CpuFeedForward::compute_many(const Work& work) {
    const int64_t n_embd = model_.config().n_embd;
    const int64_t block = std::min(n_batch_, kEntryBlock);
    tasks_.clear();
    for (const Part& part : parts_) {
        const int64_t n_entries = groups_[static_cast<size_t>(part.group)].n_entries;
        for (int32_t g = part.first; g < part.first + part.count; ++g) {
            for (int64_t first = 0; first < n_entries; first += block)
                tasks_.push_back({part.group, g, static_cast<int32_t>(first), static_cast<int32_t>(std::min(block, n_entries - first))});
        }
    }
    workspace_.pool().run(static_cast<int64_t>(tasks_.size()), [&](int64_t index, int thread) {
        const Task& task = tasks_[static_cast<size_t>(index)];
        const Group& group = groups_[static_cast<size_t>(task.group)];
        const StripLayout& layout = group.set->layout;
        const size_t row = intermediate_row_bytes(layout);
        std::byte* out = intermediate_ + group.intermediate_at + static_cast<size_t>(task.first * layout.n_granules + task.granule) * row;
        intermediate(group, task.granule, group.granule(task.granule), task.first, task.count, work, out,
                     row * static_cast<size_t>(layout.n_granules), thread);
    });

    const int64_t tiles = (n_embd + ops::kTileRows - 1) / ops::kTileRows;
    const int64_t chunk = std::max<int64_t>(4, tiles / (workspace_.pool().size() * int64_t{4}) / 4 * 4);
    tasks_.clear();
    for (size_t i = 0; i < parts_.size(); ++i) {
        for (int64_t first = 0; first < tiles; first += chunk) {
            tasks_.push_back(
                {static_cast<int32_t>(i), 0, static_cast<int32_t>(first), static_cast<int32_t>(std::min(chunk, tiles - first))});
        }
    }
    workspace_.pool().run(static_cast<int64_t>(tasks_.size()), [&](int64_t index, int thread) {
        const Task& task = tasks_[static_cast<size_t>(index)];
        const Part& part = parts_[static_cast<size_t>(task.group)];
        const Group& group = groups_[static_cast<size_t>(part.group)];
        const StripLayout& layout = group.set->layout;
        const size_t row = intermediate_row_bytes(layout);
        for (int64_t g = part.first; g < part.first + part.count; ++g) {
            ops::MatmulJob job;
            job.w = layout.down(group.granule(g));
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
}

void CpuFeedForward::stream(int64_t il, const Work& work, int64_t n) {
    const LayerWeights& layer = model_.layer(il);
    const auto n_granules = static_cast<size_t>(layer.routed->layout.n_granules);
    const size_t n_routed = n_routed_groups();
    granules_.assign(n_routed * n_granules, nullptr);
    wants_.clear();
    for (size_t i = 0; i < n_routed; ++i) {
        groups_[i].data = granules_.data() + i * n_granules;
        wants_.push_back({static_cast<int32_t>(groups_[i].expert), groups_[i].data});
    }
    const int64_t k = model_.config().layers[static_cast<size_t>(il)].n_expert_used;
    Streamer::Pass pass(*model_.streamer(), {.layer = layer.moe_layer,
                                             .ids = {ids_, static_cast<size_t>(n * k)},
                                             .n_tokens = static_cast<int>(n),
                                             .is_decode = batch_ == 1,
                                             .wants = wants_,
                                             .timeline = &timeline_,
                                             .position = probe_position_});
    fetch_ahead(pass, layer.moe_layer, work.residual, n);
    if (n <= kFewTokens) {
        stream_few(pass, work);
    } else {
        stream_many(pass, work);
    }
    report_ = pass.finish();
    reduce(il, work, n, n <= kFewTokens);
}

void CpuFeedForward::stream_few(Streamer::Pass& pass, const Work& work) {
    tasks_.clear();  // of the shared expert, which is always there
    for (size_t i = n_routed_groups(); i < groups_.size(); ++i) {
        for (int64_t g = 0; g < groups_[i].set->layout.n_granules; ++g)
            tasks_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(g), 0, 0});
    }
    const auto compute = [&](const Streamer::Item& item, int thread) {
        const int64_t start = timeline_.is_on() ? now_ns() : 0;
        const Group& group = groups_[static_cast<size_t>(item.want)];
        compute_few(group, item.granule, item.data, work, thread);
        if (!timeline_.is_on()) return;
        timeline_.record({.start_ns = start,
                          .end_ns = now_ns(),
                          .bytes = group.set->layout.granule_bytes,
                          .position = probe_position_,
                          .kind = Span::granule,
                          .lane = thread,
                          .layer = static_cast<int32_t>(probe_layer_),
                          .expert = static_cast<int32_t>(group.expert),
                          .granule = item.granule});
    };
    if (pass.uses_cpu_lane()) pass.start_in_place(compute, workspace_.pool().size());
    std::atomic<size_t> next{0}, done{0};
    // One task a thread, that ends when nothing is left: a thread that lost its core holds nobody up.
    workspace_.pool().run(workspace_.pool().size(), [&](int64_t, int thread) {
        for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks_.size();) {
            const Group& group = groups_[static_cast<size_t>(tasks_[i].group)];
            compute_few(group, tasks_[i].granule, group.granule(tasks_[i].granule), work, thread);
        }
        size_t mine = 0;
        while (const Streamer::Item item = pass.take(thread)) {
            compute(item, thread);
            pass.done(item);
            ++mine;
        }
        done.fetch_add(mine, std::memory_order_relaxed);
    });
    tasks_run_ += static_cast<int64_t>(done.load() + tasks_.size());
}

void CpuFeedForward::stream_many(Streamer::Pass& pass, const Work& work) {
    const auto run_tasks = [&](int64_t n, const std::function<void(int64_t, int)>& task) { workspace_.pool().run(n, task); };
    const size_t n_routed = n_routed_groups();
    bool shared_done = n_routed == groups_.size();
    while (pass.next_wave(wave_, run_tasks)) {
        parts_.clear();
        for (const Streamer::WaveRun& run : wave_) parts_.push_back({run.want, run.first, run.count});
        if (!shared_done)
            parts_.push_back({static_cast<int32_t>(n_routed), 0, static_cast<int32_t>(groups_.back().set->layout.n_granules)});
        shared_done = true;
        compute_many(work);
    }
}

// What the next layers will probably want goes behind this layer's own transfers.
void CpuFeedForward::fetch_ahead(Streamer::Pass& pass, int moe_layer, const float* residual, int64_t n) {
    Streamer& streamer = *model_.streamer();
    if (n >= Streamer::kManyTokens) {
        if (moe_layer + 1 < streamer.n_layer()) pass.prefetch_all(moe_layer + 1);
        return;
    }
    if (batch_ > 1) return;
    const int after = (moe_layer + 1) % streamer.n_layer();
    if (const auto guess = pass.guess(after); !guess.empty() && !pass.wants_guess(after)) {
        pass.prefetch(after, guess);
        return;
    }
    if (is_forced()) {
        const int target = moe_layer + 1;
        if (!has_forced_guesses() || !pass.wants_guess(target, trace_.is_on())) return;
        const int64_t k = model_.config().layers[static_cast<size_t>(streamer.il(target))].n_expert_used;
        pass.prefetch(target, {forced_guess(target, probe_position_, k), static_cast<size_t>(k)});
        return;
    }
    for (int ahead = 1; ahead <= streamer.lookahead(); ++ahead) {
        const int target = moe_layer + ahead;
        if (!pass.wants_guess(target, trace_.is_on())) return;
        const int64_t il = streamer.il(target);
        guess(il, residual);
        pass.prefetch(target, {guess_ids_.data(), static_cast<size_t>(model_.config().layers[static_cast<size_t>(il)].n_expert_used)});
    }
}

// guess_ids_ = what layer il's router would choose for one token if the layers until there added nothing.
void CpuFeedForward::guess(int64_t il, const float* residual) {
    const ops::Kernels& kernels = workspace_.kernels();
    const Config& config = model_.config();
    const LayerWeights& w = model_.layer(il);
    router_norm(w, config.n_embd).apply(kernels, config.norm_eps, residual, guess_x_.data(), config.n_embd);
    quantize_row(kernels, act_mask(w.router), guess_x_.data(), config.n_embd, guess_acts_.acts(), 0);
    device::MatmulList router;
    router.jobs[router.n_jobs++] = matmul_job(w.router, guess_acts_, guess_logits_.data());
    router.n_tokens = 1;
    workspace_.matmul(router);
    route_token(config, config.layers[static_cast<size_t>(il)], kernels, w.selection_bias, guess_logits_.data(), guess_ids_.data(),
                guess_weights_.data());
}

void CpuFeedForward::reduce(int64_t il, const Work& work, int64_t n, bool few) {
    const int64_t n_embd = model_.config().n_embd;
    const int64_t chunks = few ? (n_embd + kReduceColumns - 1) / kReduceColumns : 1, width = few ? kReduceColumns : n_embd;
    workspace_.pool().run(n * chunks, [&](int64_t task, int) {
        const int64_t begin = task % chunks * width;
        reduce_row(il, task / chunks, begin, std::min(begin + width, n_embd), few, work);
    });
    if (trace_.is_on() && model_.layer(il).routed) {
        const int64_t k = model_.config().layers[static_cast<size_t>(il)].n_expert_used;
        const StripLayout& layout = model_.layer(il).routed->layout;
        if (!model_.streamer()) report_.n_resident = static_cast<int>(static_cast<int64_t>(n_routed_groups()) * layout.n_granules);
        trace_.note(model_.layer(il).moe_layer, n, k, layout.n_granules, ids_, weights_, report_);
    }
    report_ = {};
}

// x[t] += sum of the token's experts, columns [begin, end). The order of additions is the contract; both schedules come here.
void CpuFeedForward::reduce_row(int64_t il, int64_t t, int64_t begin, int64_t end, bool few, const Work& work) {
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
