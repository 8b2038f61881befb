// A layer that the device runs by itself: what DeviceFeedForward launches for it, one thing after the other and without a wait, and how
// DeviceExperts keeps its order and its accounts. And a token that has only such layers, which may be captured in a graph.
#include <utility>

#include "base/log.h"
#include "engine/device_experts.h"
#include "engine/device_feed_forward.h"

namespace moepic {

// ---- DeviceExperts ---------------------------------------------------------------------------------------------------------------------

// From this layer on, all that somebody on the host would look at must be resident: later layers' experts are fetched ahead while this
// one is run, by what its state or its router says; and `auto` wants to see tokens whole.
bool DeviceExperts::needs_no_host(int layer) {
    int count = 1;
    if (books_.prefetches()) count += options_.lookahead;
    if (books_.chooses_policy()) count = n_layer();
    for (int i = 0; i < count; ++i) {
        if (!resident_.is_whole((layer + i) % n_layer(), books_.cache().residency())) return false;
    }
    return true;
}

DeviceExperts::ResidentPass::ResidentPass(DeviceExperts& experts, int first, int n, int n_tokens, bool is_decode,
                                          const device::OwnedStream& compute)
    : e_(experts), owner_(experts.owner_), first_(first), n_(n), is_decode_(is_decode), compute_(compute) {
    for (int layer = first; layer < first + n; ++layer) {
        if (e_.needs_no_host(layer)) continue;
        owner_.unlock();
        return;
    }
    if (!e_.resident_.has_room(n)) e_.await_letters();
    compute_.wait(e_.last_use_);
    for (int layer = first; layer < first + n; ++layer)
        e_.resident_.bring_table(layer, e_.books_.cache().residency(), *e_.arena_, compute_);
    e_.resident_.tell_count(compute_);
    for (int layer = first; layer < first + n; ++layer)
        e_.resident_.begin_letter(layer, int64_t{n_tokens} * e_.layers_[static_cast<size_t>(layer)].n_used, is_decode);
}

DeviceExperts::ResidentPass::~ResidentPass() {
    if (is_finished_ || !owner_) return;
    (void)e_.library_->synchronize(compute_.get());  // a launch failed, maybe behind one that writes a letter
    e_.resident_.drop_last(n_);
}

void DeviceExperts::ResidentPass::address(int layer, device::TaskListJob& job) const {
    job.granules = e_.resident_.table(layer);
    job.letters = e_.resident_.letters();
}

void DeviceExperts::ResidentPass::finish() {
    compute_.record(e_.last_use_);
    is_finished_ = true;
    for (int layer = first_; layer < first_ + n_; ++layer) e_.books_.end_layer(layer, is_decode_, 0);
    e_.round_trips_.n_routed_there += n_;
}

bool DeviceExperts::ResidentPass::give_up_graphs(const Error& why) {
    if (e_.graphs_ != Graphs::automatic) return false;
    e_.graphs_ = Graphs::never;
    log_message(LogLevel::warning, cat("device: tokens are launched step by step, for they could not be made a graph: ", why.text()));
    return true;
}

// A token that ran the other way than the trial has it, or while another context's changed that, is no part of it.
void DeviceExperts::note_token(double seconds, bool was_graph) {
    const std::lock_guard owner(owner_);
    n_graph_tokens_ += was_graph;
    if (graphs_ == Graphs::automatic && was_graph == graph_trial_.is_on()) graph_trial_.observe(seconds, 0.0);
}

void DeviceExperts::account_letters() {
    while (const auto used = resident_.take()) books_.account_resident(used->layer, used->ids, used->is_decode);
}

// All letters: behind the last pass come those of all passes before it.
void DeviceExperts::await_letters() {
    account_letters();
    if (resident_.is_empty()) return;
    last_use_.wait_host();
    account_letters();
    resident_.drop_all();  // of passes that failed on the device
}

// ---- DeviceFeedForward -----------------------------------------------------------------------------------------------------------------

bool DeviceFeedForward::run_whole(int64_t shape, const Probe& probe, const std::function<void()>& give) {
    if (experts_ == nullptr || !needs_no_host(probe)) return false;
    DeviceExperts::ResidentPass pass(*experts_, 0, experts_->n_layer(), 1, true, compute_);
    if (!pass) return false;
    list_shared(1);  // is waited for, which a capture must not do
    const struct Scope {
        Scope(const DeviceExperts::ResidentPass*& whole, const DeviceExperts::ResidentPass& pass) : whole_(whole) { whole_ = &pass; }
        ~Scope() { whole_ = nullptr; }
        const DeviceExperts::ResidentPass*& whole_;
    } scope(whole_, pass);
    was_graph_ = is_warm_ && pass.wants_graph() && launch_graph(shape, pass, give);
    if (!was_graph_) {
        give();
        is_warm_ = true;
    }
    pass.finish();
    return true;
}

// False: it could not be done, graphs have been given up, and nothing runs.
bool DeviceFeedForward::launch_graph(int64_t shape, DeviceExperts::ResidentPass& pass, const std::function<void()>& give) {
    const int64_t start = now_ns(), n_tasks = tasks_run_, n_experts = experts_used_;
    try {
        if (graph_.shape != shape) {
            graph_ = {};
            graph_.launches = compute_.capture(give);
            graph_.n_tasks = std::exchange(tasks_run_, n_tasks) - n_tasks;
            graph_.n_experts = std::exchange(experts_used_, n_experts) - n_experts;
            graph_.shape = shape;
            pass.captured();
            capture_s_ = 1e-9 * static_cast<double>(now_ns() - start);
        }
        compute_.launch(graph_.launches);
    } catch (const Error& error) {
        tasks_run_ = n_tasks;
        experts_used_ = n_experts;
        if (error.code() == Code::cancelled || !pass.give_up_graphs(error)) throw;
        graph_ = {};
        return false;
    }
    tasks_run_ += graph_.n_tasks;
    experts_used_ += graph_.n_experts;
    return true;
}

// A graph serves as many tokens as its shape has positions, so each bears that part of its making.
void DeviceFeedForward::note_whole(double seconds) {
    const double capture_s = std::exchange(capture_s_, 0.0);
    experts_->note_token(seconds - capture_s + capture_s / static_cast<double>(ops::kKvChunk), was_graph_);
}

void DeviceFeedForward::launch_resident(const DeviceExperts::ResidentPass& pass, int64_t il, const Work& work, int64_t n) {
    const Config& config = model_.config();
    const LayerConfig& layer_config = config.layers[static_cast<size_t>(il)];
    const LayerWeights& layer = device_.layer(il);
    const ExpertSet& set = *layer.routed;
    const bool weighted_input = config.recipe->weight_on_input;

    device::RouteJob route;
    route.n = n;
    route.n_expert = set.n_expert;
    route.k = layer_config.n_expert_used;
    route.scoring = static_cast<int32_t>(config.scoring);
    route.n_group = config.n_group;
    route.n_group_used = config.n_group_used;
    route.groups_by_best = config.groups_by_best;
    route.renormalise = config.renormalise;
    route.router_scale = config.router_scale;
    route.selection_bias = layer.selection_bias;
    route.expert_scale = layer.expert_scale;
    route.logits = logits_;
    route.ids = listed_.ids;
    route.weights = listed_.weights;
    check(library_->route(route, compute_.get()));

    device::TaskListJob list;
    list.n = n;
    list.k = route.k;
    list.n_granules = set.layout.n_granules;
    list.ids = listed_.ids;
    list.weights = weighted_input ? listed_.weights : nullptr;
    list.tasks = listed_.tasks;
    list.entry_token = listed_.entry_token;
    list.entry_weight = listed_.entry_weight;
    list.token_entry = listed_.token_entry;
    pass.address(layer.moe_layer, list);
    check(library_->list_tasks(list, compute_.get()));
    if (layer.shared) run_shared(il, work, n);

    device::ExpertJob job = job_of(set, *work.routed);
    job.tasks = listed_.tasks;
    job.n_tasks = static_cast<int32_t>(n * route.k * list.n_granules);
    job.most_entries = static_cast<int32_t>(n);
    job.entry_token = listed_.entry_token;
    job.entry_weight = weighted_input ? listed_.entry_weight : nullptr;
    job.intermediate = intermediate_;
    job.partials = partials_;
    check(library_->expert_intermediate(job, compute_.get()));
    check(library_->expert_down_few(job, compute_.get()));

    device::ReduceJob sum = reduce_of(il, work, n);
    sum.token_entry = listed_.token_entry;
    sum.ids = listed_.ids;
    sum.weights = weighted_input ? nullptr : listed_.weights;
    sum.n_granules = list.n_granules;
    check(library_->reduce(sum, compute_.get()));
    experts_used_ += n * route.k;
    tasks_run_ += job.n_tasks;
}

}  // namespace moepic
