#include "engine/device_feed_forward.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "base/error.h"
#include "engine/norm.h"
#include "engine/router.h"

namespace moepic {
namespace {

constexpr int kFewTokens = DeviceExperts::kFewTokens, kManyTokens = DeviceExperts::kManyTokens;
// How often the host looks after other things while it waits for a letter: fetching ahead, and whether the device still lives.
constexpr int kPumpEvery = 64, kAskEvery = 4096;

device::GranuleShape shape_of(const StripLayout& layout) {
    return {layout.n_embd,    layout.granule,   layout.n_granules,  layout.gate_type,        layout.up_type,
            layout.down_type, layout.up_offset, layout.down_offset, layout.gate_bias_offset, layout.up_bias_offset};
}

}  // namespace

DeviceFeedForward::DeviceFeedForward(const Model& model, Workspace& workspace, const device::OwnedStream& compute, int64_t n_batch)
    : FeedForward(model),
      n_batch_(n_batch),
      device_(*model.device()),
      library_(device_.library()),
      compute_(compute),
      experts_(device_.experts()),
      workspace_(workspace),
      pool_(workspace.pool()),
      posted_(library_),
      shared_listed_(library_),
      cpu_lane_(model, workspace, n_batch) {
    Carver device_size, letters_size, host_size;
    place(device_size, letters_size, host_size);
    memory_ = device_.allocate(device_size.used(), "the feed-forward's scratch");
    letters_ = device::allocate_host(library_, letters_size.used(), "the mailbox");
    host_memory_ = Region(host_size.used(), "feed-forward scratch");
    Carver on_device(memory_.data()), letters(letters_.data()), host(host_memory_.data());
    place(on_device, letters, host);
    *mailbox_.flag = 0;
    size_t shared = Tables::bytes_of<int32_t>(static_cast<size_t>(n_batch_));
    for (int64_t il = 0; il < model.config().n_layer; ++il) {
        const LayerWeights& layer = model.layer(il);
        if (!layer.shared) continue;
        shared += Tables::bytes_of<device::ExpertTask>(static_cast<size_t>(layer.shared->layout.n_granules)) +
                  Tables::bytes_of<device::ExpertRun>(1);
    }
    shared_tables_ = Tables(library_, device_.allocate(shared, "tables of a layer"));
    list_shared(n_batch_);
}

// Everything for the worst layer and batch. Run once without memory to learn the sizes.
void DeviceFeedForward::place(Carver& on_device, Carver& letters, Carver& host) {
    const auto n = static_cast<size_t>(n_batch_);
    const auto few = static_cast<size_t>(std::min<int64_t>(n_batch_, kFewTokens));
    const auto n_embd = static_cast<size_t>(model_.config().n_embd);
    size_t most_experts = 1, k = 1, rows_few = 0, entries_many = 0, intermediate = 0, tables = 0;
    size_t shared_rows = 0, shared_intermediate = 0;
    ActMask routers = 0;
    for (int64_t il = 0; il < model_.config().n_layer; ++il) {
        const LayerWeights& layer = model_.layer(il);
        if (layer.routed) {
            const StripLayout& layout = layer.routed->layout;
            const auto used = static_cast<size_t>(model_.config().layers[static_cast<size_t>(il)].n_expert_used);
            const auto granules = static_cast<size_t>(layout.n_granules), experts = static_cast<size_t>(layer.routed->n_expert);
            const size_t row = intermediate_row_bytes(layout);
            most_experts = std::max(most_experts, experts);
            k = std::max(k, used);
            rows_few = std::max(rows_few, few * used * granules);
            entries_many = std::max(entries_many, n * used);
            intermediate = std::max(intermediate, row * granules * used * n);
            tables = std::max(tables, std::min(experts, n * used) * granules);
            routers |= act_mask(layer.router);
        }
        if (layer.shared) {
            const StripLayout& layout = layer.shared->layout;
            const auto granules = static_cast<size_t>(layout.n_granules);
            shared_rows = std::max({shared_rows, few * granules, n});
            shared_intermediate = std::max(shared_intermediate, n * granules * intermediate_row_bytes(layout));
        }
    }
    logits_ = on_device.take<float>(n * most_experts);
    shared_weight_ = on_device.take<float>(n);
    intermediate_ = on_device.take<std::byte>(intermediate);
    partials_ = on_device.take<float>(std::max(rows_few, n_batch_ > kFewTokens ? entries_many : 0) * n_embd);
    shared_intermediate_ = on_device.take<std::byte>(shared_intermediate);
    shared_partials_ = on_device.take<float>(shared_rows * n_embd);
    guess_x_ = on_device.take<float>(n_embd);
    guess_acts_.reserve(on_device, routers, model_.config().n_embd, 1);
    for (float*& guess : guess_logits_) guess = on_device.take<float>(most_experts);
    listed_.ids = on_device.take<int32_t>(few * k);
    listed_.weights = on_device.take<float>(few * k);
    listed_.tasks = on_device.take<device::ExpertTask>(rows_few);
    listed_.entry_token = on_device.take<int32_t>(few * k);
    listed_.entry_weight = on_device.take<float>(few * k);
    listed_.token_entry = on_device.take<int32_t>(few * (k + 1));

    mailbox_.flag = letters.take<uint32_t>(1);
    mailbox_.unheard = letters.take<uint32_t>(1);
    mailbox_.logits = letters.take<float>(n * most_experts);
    for (float*& guess : mailbox_.guess_logits) guess = letters.take<float>(most_experts);
    cpu_lane_.place(letters, host);
    if (!letters_.data()) return;
    const size_t entries = std::max(rows_few, entries_many);
    // Runs of a prompt are written part by part, each part on a line of its own.
    const size_t table_bytes = 2 * Tables::bytes_of<int32_t>(entries) + Tables::bytes_of<float>(entries) +
                               3 * Tables::bytes_of<int32_t>(n * (k + 1)) + Tables::bytes_of<device::ExpertTask>(tables) +
                               tables * Tables::bytes_of<device::ExpertRun>(1);
    tables_ = Tables(library_, device_.allocate(table_bytes, "tables of a layer"));
}

device::ExpertJob DeviceFeedForward::job_of(const ExpertSet& set, const ActSet& acts) const {
    device::ExpertJob job;
    job.shape = shape_of(set.layout);
    job.acts = acts.acts();
    job.glu = model_.config().recipe->glu;
    return job;
}

void DeviceFeedForward::run(int64_t il, const Work& work, int64_t n, int64_t first_position, const Probe& probe) {
    const LayerWeights& layer = device_.layer(il);
    score(il, work, n);
    if (layer.routed && run_resident(il, work, n, probe)) return;
    if (layer.routed) ask(il, work, n);
    if (layer.shared) run_shared(il, work, n);
    if (layer.routed) {
        hear();
        choose(il, n, first_position, probe);
        run_routed(il, work, n, first_position);
    } else {
        check(library_->reduce(reduce_of(il, work, n), compute_.get()));
    }
}

// Few tokens of a layer whose experts are all resident, unless somebody wants to see the routing, or prescribes it.
bool DeviceFeedForward::run_resident(int64_t il, const Work& work, int64_t n, const Probe& probe) {
    if (whole_) {
        launch_resident(*whole_, il, work, n);
        return true;
    }
    if (n > kFewTokens || !needs_no_host(probe)) return false;
    DeviceExperts::ResidentPass pass(*experts_, model_.layer(il).moe_layer, 1, static_cast<int>(n), batch_ == 1, compute_);
    if (!pass) return false;
    launch_resident(pass, il, work, n);
    pass.finish();
    return true;
}

// ---- the router ------------------------------------------------------------------------------------------------------------------------

// Router and shared gate.
void DeviceFeedForward::score(int64_t il, const Work& work, int64_t n) {
    const LayerWeights& layer = device_.layer(il);
    device::MatmulList list;
    list.n_tokens = n;
    if (layer.router.w.rows) list.jobs[list.n_jobs++] = matmul_job(layer.router, *work.router, logits_);
    if (layer.shared_gate.w.rows) list.jobs[list.n_jobs++] = matmul_job(layer.shared_gate, *work.router, shared_weight_);
    if (list.n_jobs > 0) check(library_->matmul(list, compute_.get()));
    if (layer.shared_gate.w.rows) check(library_->sigmoid(shared_weight_, n, compute_.get()));
}

// Guesses; what the host has to hear goes to the mailbox.
void DeviceFeedForward::ask(int64_t il, const Work& work, int64_t n) {
    const LayerWeights& layer = device_.layer(il);
    const auto n_logits = static_cast<size_t>(n * layer.routed->n_expert);
    is_shared_with_cpu_ = experts_->may_share(layer.moe_layer);
    if (is_shared_with_cpu_) cpu_lane_.send(work.routed->acts(), n, compute_);
    // Guesses are for a token that goes through the layers alone.
    for (int ahead = 1; batch_ == 1 && !is_forced() && ahead <= experts_->lookahead(); ++ahead) {
        const int target = layer.moe_layer + ahead;
        if (!experts_->wants_guess(target)) break;
        const LayerWeights& later = device_.layer(experts_->il(target));
        const Norm norm = router_norm(later, model_.config().n_embd);
        device::NormJob job;
        job.x = work.residual;
        job.weight = norm.weight;
        job.bias = norm.bias;
        job.eps = model_.config().norm_eps;
        job.factor = norm.factor;
        job.y = guess_x_;
        job.n = 1;
        job.cols = job.stride = model_.config().n_embd;
        job.acts = guess_acts_.acts();
        job.mask = act_mask(later.router);
        check(library_->norm(job, compute_.get()));
        device::MatmulList router;
        router.jobs[router.n_jobs++] = matmul_job(later.router, guess_acts_, guess_logits_[ahead - 1]);
        router.n_tokens = 1;
        check(library_->matmul(router, compute_.get()));
        check(library_->post(guess_logits_[ahead - 1], static_cast<size_t>(later.routed->n_expert), mailbox_.guess_logits[ahead - 1],
                             mailbox_.unheard, 0, compute_.get()));
    }
    check(library_->post(logits_, n_logits, mailbox_.logits, mailbox_.flag, ++letter_, compute_.get()));
    compute_.record(posted_);
}

// Waits for the letter. The flag was written after everything the letter says, and after every kernel before it had ended.
void DeviceFeedForward::hear() {
    const int64_t start = now_ns();
    const std::atomic_ref<uint32_t> flag(*mailbox_.flag);
    for (int64_t turn = 1; flag.load(std::memory_order_acquire) != letter_; ++turn) {
        if (turn % kPumpEvery == 0) experts_->pump();
        if (turn % kAskEvery) continue;
        if (posted_.is_done() && flag.load(std::memory_order_acquire) != letter_)
            fail(Code::device, "device: a kernel ended without its letter");
        std::this_thread::yield();
    }
    waited_s_ = 1e-9 * static_cast<double>(now_ns() - start);
}

void DeviceFeedForward::choose(int64_t il, int64_t n, int64_t first_position, const Probe& probe) {
    const LayerWeights& layer = model_.layer(il);
    const LayerConfig& config = model_.config().layers[static_cast<size_t>(il)];
    const int64_t k = config.n_expert_used;
    ids_.resize(static_cast<size_t>(n * k));
    weights_.resize(static_cast<size_t>(n * k));
    const auto one = [&](int64_t t, int) {
        int32_t* ids = ids_.data() + t * k;
        float* weights = weights_.data() + t * k;
        route_token(model_.config(), config, model_.kernels(), layer.selection_bias, mailbox_.logits + t * config.n_expert, ids, weights);
        for (int64_t j = 0; layer.expert_scale && j < k; ++j) weights[j] *= layer.expert_scale[ids[j]];
    };
    if (n == 1) {
        one(0, 0);
    } else {
        pool_.run(n, one);
    }
    for (int64_t t = 0; is_forced() && t < n; ++t) {
        std::copy_n(forced_ids(layer.moe_layer, first_position + t, k), k, ids_.data() + t * k);
        std::fill_n(weights_.data() + t * k, k, 1.0f / static_cast<float>(k));
    }
    experts_used_ += n * k;
    if (probe) probe({ProbeKind::routing, il, -1, -1, first_position, n, k, weights_.data(), ids_.data()});
}

// How many tokens each expert has, experts ascending.
void DeviceFeedForward::group(int64_t il, int64_t n) {
    const int64_t k = model_.config().layers[static_cast<size_t>(il)].n_expert_used;
    const auto n_expert = static_cast<size_t>(model_.layer(il).routed->n_expert);
    std::vector<int32_t> count(n_expert, 0);
    for (int64_t i = 0; i < n * k; ++i) ++count[static_cast<size_t>(ids_[static_cast<size_t>(i)])];
    groups_.clear();
    distinct_.clear();
    n_entries_.clear();
    group_of_.resize(n_expert);
    for (size_t e = 0; e < n_expert; ++e) {
        if (count[e] == 0) continue;
        group_of_[e] = static_cast<int32_t>(groups_.size());
        groups_.push_back({static_cast<int32_t>(e), 0, count[e]});
        distinct_.push_back(static_cast<int32_t>(e));
        n_entries_.push_back(count[e]);
    }
}

// Tokens by expert, experts in the order in which their granules are placed.
void DeviceFeedForward::number_entries(int64_t il, int64_t n, std::span<const DeviceExperts::Placed> placed) {
    const int64_t k = model_.config().layers[static_cast<size_t>(il)].n_expert_used;
    int32_t first = 0;
    for (const DeviceExperts::Placed& at : placed) {
        if (at.granule > 0) continue;  // an expert's come in order
        Group& group = groups_[static_cast<size_t>(at.want)];
        group.first_entry = first;
        first += group.n_entries;
    }
    std::vector<int32_t> next;
    for (const Group& group : groups_) next.push_back(group.first_entry);
    entry_token_.resize(static_cast<size_t>(n * k));
    entry_of_.resize(static_cast<size_t>(n * k));
    entry_weight_.resize(static_cast<size_t>(n * k));
    for (int64_t i = 0; i < n * k; ++i) {
        const int32_t expert = ids_[static_cast<size_t>(i)];
        const int32_t entry = next[static_cast<size_t>(group_of_[static_cast<size_t>(expert)])]++;
        entry_token_[static_cast<size_t>(entry)] = static_cast<int32_t>(i / k);
        entry_weight_[static_cast<size_t>(entry)] = weights_[static_cast<size_t>(i)];
        entry_of_[static_cast<size_t>(i)] = entry;
    }
}

// ---- routed experts --------------------------------------------------------------------------------------------------------------------

void DeviceFeedForward::run_routed(int64_t il, const Work& work, int64_t n, int64_t first_position) {
    const int64_t start = now_ns();
    const LayerWeights& layer = model_.layer(il);
    group(il, n);
    planned_from_ns_ = start;
    tables_.clear();
    PassReport report;
    {
        DeviceExperts::Pass pass(*experts_, {.layer = layer.moe_layer,
                                             .ids = ids_,
                                             .experts = distinct_,
                                             .entries = n_entries_,
                                             .n_tokens = static_cast<int>(n),
                                             .is_decode = batch_ == 1,
                                             .compute = &compute_,
                                             .cpu = {is_shared_with_cpu_, cpu_lane_.n_threads(), cpu_lane_.most_entries()}});
        number_entries(il, n, pass.placed());
        if (n <= kFewTokens) {
            run_few(pass, il, work, n);
        } else {
            run_many(pass, il, work, n);
        }
        fetch_ahead(pass, layer.moe_layer, n, first_position);
        report = pass.finish();
    }
    if (batch_ == 1) experts_->note_round_trip(waited_s_, planned_s_);
    if (!trace_.is_on()) return;
    const int64_t k = model_.config().layers[static_cast<size_t>(il)].n_expert_used;
    trace_.note(layer.moe_layer, n, k, layer.routed->layout.n_granules, ids_.data(), weights_.data(), report);
}

void DeviceFeedForward::run_few(DeviceExperts::Pass& pass, int64_t il, const Work& work, int64_t n) {
    const ExpertSet& set = *model_.layer(il).routed;
    const int64_t k = model_.config().layers[static_cast<size_t>(il)].n_expert_used, n_granules = set.layout.n_granules;
    const bool weighted_input = model_.config().recipe->weight_on_input;
    const auto placed = pass.placed();
    const auto n_rows = static_cast<size_t>(n * k * n_granules);
    tasks_run_ += static_cast<int64_t>(placed.size());

    auto* tasks = tables_.take<device::ExpertTask>(placed.size());
    auto* entry_token = tables_.take<int32_t>(n_rows);
    auto* entry_weight = weighted_input ? tables_.take<float>(n_rows) : nullptr;
    auto* rows = tables_.take<int32_t>(n_rows);  // [entry of a group][granule]
    first_row_.clear();
    int32_t row = 0;
    for (size_t i = 0; i < placed.size(); ++i) {
        const Group& group = groups_[static_cast<size_t>(placed[i].want)];
        tasks[i] = {placed[i].data, 0, row, group.n_entries, row};
        first_row_.push_back(row);
        for (int32_t j = group.first_entry; j < group.first_entry + group.n_entries; ++j, ++row) {
            rows[j * n_granules + placed[i].granule] = row;
            entry_token[row] = entry_token_[static_cast<size_t>(j)];
            if (entry_weight) entry_weight[row] = entry_weight_[static_cast<size_t>(j)];
        }
    }
    device::ReduceJob sum = reduce_of(il, work, n);
    write_routing(sum);
    sum.rows = tables_.on_device(rows);
    sum.n_granules = n_granules;
    tables_.upload(compute_);

    device::ExpertJob job = job_of(set, *work.routed);
    job.shape.n_granules = 1;  // an entry is one granule's
    job.tasks = tables_.on_device(tasks);
    job.most_entries = static_cast<int32_t>(n);
    job.entry_token = tables_.on_device(entry_token);
    if (entry_weight) job.entry_weight = tables_.on_device(entry_weight);
    job.intermediate = intermediate_;
    job.partials = partials_;
    launch_all(pass, il, false, row, [&](DeviceExperts::Range range) { launch_few(job, range); });
    check(library_->reduce(sum, compute_.get()));
}

// The kernels of everything that the device computes, as it gets there; beside them the CPU's part.
void DeviceFeedForward::launch_all(DeviceExperts::Pass& pass, int64_t il, bool is_many, int64_t n_rows,
                                   const DeviceCpuLane::Launch& launch) {
    launch(pass.residents());
    pass.residents_launched();
    planned_s_ = 1e-9 * static_cast<double>(now_ns() - planned_from_ns_);
    launch(pass.await_ahead());
    if (!pass.uses_cpu_lane()) {
        while (const DeviceExperts::Range range = pass.next()) {
            launch(range);
            pass.launched(range);
        }
    } else if (!pass.is_queue_empty()) {
        const bool weighted_input = model_.config().recipe->weight_on_input;
        cpu_lane_.share(pass,
                        {.set = &*model_.layer(il).routed,
                         .is_many = is_many,
                         .groups = groups_,
                         .entry_token = entry_token_.data(),
                         .entry_weight = weighted_input ? entry_weight_.data() : nullptr,
                         .first_row = first_row_,
                         .n_rows = n_rows},
                        launch, partials_, compute_);
    }
}

void DeviceFeedForward::launch_few(const device::ExpertJob& job, DeviceExperts::Range range) {
    if (range.count == 0) return;
    device::ExpertJob part = job;
    part.tasks += range.first;
    part.n_tasks = range.count;
    check(library_->expert_intermediate(part, compute_.get()));
    check(library_->expert_down_few(part, compute_.get()));
}

void DeviceFeedForward::run_many(DeviceExperts::Pass& pass, int64_t il, const Work& work, int64_t n) {
    const ExpertSet& set = *model_.layer(il).routed;
    const int64_t k = model_.config().layers[static_cast<size_t>(il)].n_expert_used;
    const auto placed = pass.placed();
    const auto n_entries = static_cast<size_t>(n * k);
    auto* tasks = tables_.take<device::ExpertTask>(placed.size());
    auto* entry_token = tables_.take<int32_t>(n_entries);
    std::copy(entry_token_.begin(), entry_token_.end(), entry_token);
    float* entry_weight = nullptr;
    if (model_.config().recipe->weight_on_input) {
        entry_weight = tables_.take<float>(n_entries);
        std::copy(entry_weight_.begin(), entry_weight_.end(), entry_weight);
    }
    device::ExpertJob job = job_of(set, *work.routed);
    first_row_.clear();
    for (size_t i = 0; i < placed.size(); ++i) {
        const Group& group = groups_[static_cast<size_t>(placed[i].want)];
        tasks[i] = {placed[i].data, placed[i].granule, group.first_entry, group.n_entries, 0};
        first_row_.push_back(group.first_entry);
        job.most_entries = std::max(job.most_entries, group.n_entries);
    }
    device::ReduceJob sum = reduce_of(il, work, n);
    write_routing(sum);
    tables_.upload(compute_);
    job.entry_token = tables_.on_device(entry_token);
    if (entry_weight) job.entry_weight = tables_.on_device(entry_weight);
    job.intermediate = intermediate_;
    job.partials = partials_;
    tasks_run_ += static_cast<int64_t>(placed.size());

    // Parts of the list in its order, so that granules of an expert are added up in theirs.
    launch_all(pass, il, true, n * k, [&](DeviceExperts::Range range) {
        if (range.count == 0) return;
        auto* runs = tables_.take<device::ExpertRun>(static_cast<size_t>(range.count));
        int32_t n_runs = 0;
        for (int i = range.first; i < range.first + range.count; ++i) {
            const bool goes_on = i > range.first && placed[static_cast<size_t>(i)].want == placed[static_cast<size_t>(i) - 1].want;
            if (goes_on) {
                ++runs[n_runs - 1].count;
            } else {
                runs[n_runs++] = {i, 1};
            }
        }
        tables_.upload(compute_);
        device::ExpertJob part = job;
        part.tasks = tables_.on_device(tasks) + range.first;
        part.n_tasks = range.count;
        check(library_->expert_intermediate(part, compute_.get()));
        part.tasks = tables_.on_device(tasks);
        part.n_tasks = static_cast<int32_t>(placed.size());
        part.runs = tables_.on_device(runs);
        part.n_runs = n_runs;
        check(library_->expert_down_many(part, compute_.get()));
    });
    check(library_->reduce(sum, compute_.get()));
}

// ---- the shared expert, and what is common ---------------------------------------------------------------------------------------------

void DeviceFeedForward::run_shared(int64_t il, const Work& work, int64_t n) {
    list_shared(n);
    const ExpertSet& set = *device_.layer(il).shared;
    device::ExpertJob job = job_of(set, *work.shared);
    job.tasks = shared_tasks_[static_cast<size_t>(il)];
    job.n_tasks = static_cast<int32_t>(set.layout.n_granules);
    job.most_entries = static_cast<int32_t>(n);
    job.entry_token = tokens_;
    job.intermediate = shared_intermediate_;
    job.partials = shared_partials_;
    job.runs = shared_runs_[static_cast<size_t>(il)];
    job.n_runs = 1;
    check(library_->expert_intermediate(job, compute_.get()));
    check(n <= kFewTokens ? library_->expert_down_few(job, compute_.get()) : library_->expert_down_many(job, compute_.get()));
    tasks_run_ += set.layout.n_granules;
}

// The tasks of every layer's shared expert: all its granules for n tokens. They change with n alone.
void DeviceFeedForward::list_shared(int64_t n) {
    if (n == shared_n_) return;
    shared_listed_.wait_host();
    shared_tables_.clear();
    shared_tasks_.clear();
    shared_runs_.clear();
    auto* tokens = shared_tables_.take<int32_t>(static_cast<size_t>(n_batch_));
    for (int64_t t = 0; t < n_batch_; ++t) tokens[t] = static_cast<int32_t>(t);
    tokens_ = shared_tables_.on_device(tokens);
    for (int64_t il = 0; il < model_.config().n_layer; ++il) {
        const LayerWeights& layer = device_.layer(il);
        shared_tasks_.push_back(nullptr);
        shared_runs_.push_back(nullptr);
        if (!layer.shared) continue;
        const auto n_granules = static_cast<int32_t>(layer.shared->layout.n_granules);
        auto* tasks = shared_tables_.take<device::ExpertTask>(static_cast<size_t>(n_granules));
        for (int32_t g = 0; g < n_granules; ++g) tasks[g] = {layer.shared->granule(0, g), g, 0, static_cast<int32_t>(n), g};
        auto* run = shared_tables_.take<device::ExpertRun>(1);
        *run = {0, n_granules};
        shared_tasks_.back() = shared_tables_.on_device(tasks);
        shared_runs_.back() = shared_tables_.on_device(run);
    }
    shared_tables_.upload(compute_);
    compute_.record(shared_listed_);
    shared_n_ = n;
}

// The sum of a layer; of a layer with a router, without its routing.
device::ReduceJob DeviceFeedForward::reduce_of(int64_t il, const Work& work, int64_t n) const {
    const LayerWeights& layer = device_.layer(il);
    device::ReduceJob job;
    job.n = n;
    job.n_embd = model_.config().n_embd;
    job.x = work.x;
    job.shared_x = work.shared_x;
    job.residual_scale = model_.config().residual_scale;
    job.token_entry = tokens_;  // of a layer without a router: the token is the entry
    if (layer.routed) {
        job.k = model_.config().layers[static_cast<size_t>(il)].n_expert_used;
        job.down_bias = layer.routed->down_bias;
        job.partials = partials_;
        job.n_granules = 1;
    }
    if (layer.shared) {
        job.shared_partials = shared_partials_;
        job.shared_granules = n <= kFewTokens ? layer.shared->layout.n_granules : 1;
        job.shared_weight = layer.shared_gate.w.rows ? shared_weight_ : nullptr;
    }
    return job;
}

// What a sum needs of the routing, to the tables.
void DeviceFeedForward::write_routing(device::ReduceJob& job) {
    const int64_t n = job.n, k = job.k;
    auto* token_entry = tables_.take<int32_t>(static_cast<size_t>(n * (k + 1)));
    for (int64_t t = 0; t < n; ++t) {
        for (int64_t j = 0; j < k; ++j) token_entry[t * (k + 1) + j] = entry_of_[static_cast<size_t>(t * k + j)];
        token_entry[t * (k + 1) + k] = static_cast<int32_t>(t);
    }
    job.token_entry = tables_.on_device(token_entry);
    if (job.down_bias) {
        auto* ids = tables_.take<int32_t>(ids_.size());
        std::copy(ids_.begin(), ids_.end(), ids);
        job.ids = tables_.on_device(ids);
    }
    if (!model_.config().recipe->weight_on_input) {
        auto* weights = tables_.take<float>(weights_.size());
        std::copy(weights_.begin(), weights_.end(), weights);
        job.weights = tables_.on_device(weights);
    }
}

// What the next layers will probably want; it moves while the host waits for them.
void DeviceFeedForward::fetch_ahead(DeviceExperts::Pass& pass, int moe_layer, int64_t n, int64_t first_position) {
    if (n >= kManyTokens) {
        if (moe_layer + 1 < experts_->n_layer()) pass.prefetch_all(moe_layer + 1);
        return;
    }
    if (batch_ > 1) return;
    const int after = (moe_layer + 1) % experts_->n_layer();
    if (const auto guess = pass.guess(after); !guess.empty() && !pass.wants_guess(after)) {
        pass.prefetch(after, guess);
        return;
    }
    for (int ahead = 1; ahead <= experts_->lookahead(); ++ahead) {
        const int target = moe_layer + ahead;
        if (!pass.wants_guess(target)) return;
        const LayerConfig& config = model_.config().layers[static_cast<size_t>(experts_->il(target))];
        const auto k = static_cast<size_t>(config.n_expert_used);
        if (is_forced()) {
            if (has_forced_guesses()) pass.prefetch(target, {forced_guess(target, first_position, config.n_expert_used), k});
            return;
        }
        guess_ids_.resize(k);
        guess_weights_.resize(k);
        route_token(model_.config(), config, model_.kernels(), model_.layer(experts_->il(target)).selection_bias,
                    mailbox_.guess_logits[ahead - 1], guess_ids_.data(), guess_weights_.data());
        pass.prefetch(target, guess_ids_);
    }
}

}  // namespace moepic
