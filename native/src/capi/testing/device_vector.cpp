#include "capi/testing/device_vector.h"

#include <algorithm>
#include <vector>

#include "capi/device_bench.h"
#include "capi/guard.h"
#include "engine/router.h"

namespace {

using namespace moepic;

device::Acts place(Bench& bench, const moepic_test_acts& acts, int64_t n, int64_t cols) {
    return bench.acts({acts.floats, acts.blocks_32, acts.blocks_256}, n, cols);
}

ops::RopePairing pairing(int neox) {
    return neox ? ops::RopePairing::neox : ops::RopePairing::norm;
}

ops::KvView place(Bench& bench, const moepic_test_device_kv& kv) {
    ops::KvView view;
    view.type = kv.type == 0 ? ops::KvType::f16 : ops::KvType::q8_0;
    view.n_head_kv = kv.n_head_kv;
    view.head_dim_k = kv.head_dim_k;
    view.head_dim_v = kv.head_dim_v;
    view.capacity = kv.capacity;
    const auto bytes = [&](int64_t dim) { return static_cast<int64_t>(ops::kv_bytes(view.type, view.n_head_kv, dim, view.capacity)); };
    view.keys = bench.in_out(static_cast<std::byte*>(kv.keys), bytes(kv.head_dim_k));
    view.values = bench.in_out(static_cast<std::byte*>(kv.values), bytes(kv.head_dim_v));
    return view;
}

// Slots of `from`, `middle` and `to`, and one leg over all tokens, or two that meet at `cut`.
class Slots {
public:
    Slots(int64_t n, int64_t cut, int64_t floats, const float* from, float* middle, float* to)
        : floats_(floats), middle_(cut > 0 ? middle : nullptr), to_(to), states_(static_cast<size_t>(3 * floats)) {
        if (from) std::copy_n(from, floats, states_.data());
        if (middle_) std::copy_n(middle_, floats, slot(1));
        std::copy_n(to_, floats, slot(2));
        const int32_t first = from ? 0 : -1;
        place_.legs[0] = {0, cut > 0 ? cut : n, first, cut > 0 ? 1 : 2};
        place_.legs[1] = {cut, n, 1, 2};
    }
    device::StateSlots on(Bench& bench) {
        return {bench.in(&place_, 1), middle_ ? 2 : 1, bench.in_out(states_.data(), static_cast<int64_t>(states_.size())), floats_};
    }
    // After bench.finish().
    void bring_back() const {
        if (middle_) std::copy_n(slot(1), floats_, middle_);
        std::copy_n(slot(2), floats_, to_);
    }

private:
    float* slot(int64_t i) { return states_.data() + i * floats_; }
    const float* slot(int64_t i) const { return states_.data() + i * floats_; }
    int64_t floats_;
    float *middle_, *to_;
    device::PassPlace place_;
    std::vector<float> states_;
};

const device::PassPlace* place_at(Bench& bench, int64_t first_pos) {
    device::PassPlace place;
    place.first_pos = first_pos;
    return bench.in(&place, 1);
}

}  // namespace

int moepic_test_device_norm(int device, const float* x, float* y, int64_t n, int64_t stride, int64_t cols, const float* weight,
                            const float* bias, float eps, float factor, const moepic_test_acts* acts) {
    return guard([&] {
        Bench bench(device);
        device::NormJob job;
        job.y = bench.in_out(y, n * stride);
        job.x = x ? bench.in(x, n * stride) : job.y;
        job.weight = bench.in(weight, cols);
        job.bias = bench.in(bias, cols);
        job.eps = eps;
        job.factor = factor;
        job.n = n;
        job.cols = cols;
        job.stride = stride;
        job.acts = place(bench, *acts, n, cols);
        job.mask = acts->mask;
        bench.finish(bench.api().norm(job, bench.stream()));
    });
}

int moepic_test_device_each(int device, int op, float* y, float a, const float* x, int64_t n) {
    return guard([&] {
        Bench bench(device);
        float* const to = bench.in_out(y, n);
        const float* const from = bench.in(x, n);
        switch (op) {
            case 0:
                return bench.finish(bench.api().scale(to, a, n, bench.stream()));
            case 1:
                return bench.finish(bench.api().scale_add(to, a, from, n, bench.stream()));
            case 2:
                return bench.finish(bench.api().add(to, from, n, bench.stream()));
            case 3:
                return bench.finish(bench.api().multiply(to, from, n, bench.stream()));
            case 4:
                return bench.finish(bench.api().sigmoid(to, n, bench.stream()));
            default:
                fail(Code::argument, "device: no elementwise step has the number ", op);
        }
    });
}

int moepic_test_device_glu(int device, int kind, float* gate, const float* up, float* out, int64_t n, int64_t stride, int64_t cols,
                           const moepic_test_acts* acts) {
    return guard([&] {
        Bench bench(device);
        device::GluJob job;
        job.kind = static_cast<ops::GluKind>(kind);
        float* const in_place = bench.in_out(gate, n * stride);
        job.gate = in_place;
        job.up = bench.in(up, n * stride);
        job.out = out ? bench.in_out(out, n * stride) : in_place;
        job.gate_stride = job.up_stride = job.out_stride = stride;
        job.n = n;
        job.cols = cols;
        job.acts = place(bench, *acts, n, cols);
        job.mask = acts->mask;
        bench.finish(bench.api().glu(job, bench.stream()));
    });
}

int moepic_test_device_heads(int device, const moepic_test_device_heads_job* given) {
    return guard([&] {
        Bench bench(device);
        const int64_t q_rows = given->n_head * given->head_dim_k, k_rows = given->n_head_kv * given->head_dim_k;
        device::HeadsJob job;
        job.n = given->n;
        job.n_head = given->n_head;
        job.n_head_kv = given->n_head_kv;
        job.head_dim_k = given->head_dim_k;
        job.head_dim_v = given->head_dim_v;
        job.gated_q = bench.in(given->gated_q, job.n * 2 * q_rows);
        job.q = bench.in_out(given->q, job.n * q_rows);
        job.k = bench.in_out(given->k, job.n * k_rows);
        job.v = bench.in_out(given->v, job.n * job.n_head_kv * job.head_dim_v);
        job.copies_values = given->copies_values != 0;
        job.value_norm = given->value_norm != 0;
        job.whole_norm = given->whole_norm != 0;
        job.head_norm = given->head_norm != 0;
        job.norm_after_rope = given->norm_after_rope != 0;
        job.q_norm = bench.in(given->q_norm, job.whole_norm ? q_rows : job.head_dim_k);
        job.k_norm = bench.in(given->k_norm, job.whole_norm ? k_rows : job.head_dim_k);
        job.eps = given->eps;
        job.rotates = given->rotates != 0;
        job.angles = bench.in(given->angles, job.n * given->n_rot);
        job.n_rot = given->n_rot;
        job.pairing = pairing(given->neox);
        job.q_scale = bench.in(given->q_scale, job.n);
        bench.finish(bench.api().heads(job, bench.stream()));
    });
}

int moepic_test_device_latent_heads(int device, const moepic_test_device_latent_job* given) {
    return guard([&] {
        Bench bench(device);
        device::LatentHeadsJob job;
        job.n = given->n;
        job.n_head = given->n_head;
        job.plain = given->plain;
        job.kv_rank = given->kv_rank;
        job.n_rot = given->n_rot;
        job.raw = bench.in(given->raw, job.n * job.n_head * (job.plain + job.n_rot));
        job.q = bench.in_out(given->q, job.n * job.n_head * (job.kv_rank + job.n_rot));
        job.k = bench.in_out(given->k, job.n * (job.kv_rank + job.n_rot));
        job.k_norm = bench.in(given->k_norm, job.kv_rank);
        job.eps = given->eps;
        job.angles = bench.in(given->angles, job.n * job.n_rot);
        job.pairing = pairing(given->neox);
        job.plain_acts = place(bench, given->acts, job.n * job.n_head, job.plain);
        job.mask = given->acts.mask;
        bench.finish(bench.api().latent_heads(job, bench.stream()));
    });
}

int moepic_test_device_kv_store(int device, const moepic_test_device_kv* kv, int64_t first_pos, int64_t n, const float* k, int64_t k_stride,
                                const float* v, int64_t v_stride) {
    return guard([&] {
        Bench bench(device);
        device::KvStoreJob job;
        job.kv = place(bench, *kv);
        job.k = bench.in(k, n * k_stride);
        job.v = bench.in(v, n * v_stride);
        job.k_stride = k_stride;
        job.v_stride = v_stride;
        job.place = place_at(bench, first_pos);
        job.n = n;
        bench.finish(bench.api().kv_store(job, bench.stream()));
    });
}

int moepic_test_device_attention(int device, const moepic_test_device_kv* kv, const float* q, float* out, int64_t n, int64_t n_head,
                                 int64_t first_pos, int64_t slack_below, int64_t slack_above, float scale, int64_t window,
                                 const float* sinks, int with_scratch, int* split) {
    return guard([&] {
        Bench bench(device);
        device::AttentionJob job;
        job.kv = place(bench, *kv);
        job.q = bench.in(q, n * n_head * kv->head_dim_k);
        job.out = bench.in_out(out, n * n_head * kv->head_dim_v);
        job.n = n;
        job.n_head = n_head;
        job.place = place_at(bench, first_pos);
        job.lowest_pos = first_pos - slack_below;
        job.highest_pos = first_pos + slack_above;
        job.scale = scale;
        job.window = window < 0 ? -window : window;
        job.chunked = window < 0;
        job.sinks = bench.in(sinks, n_head);
        // NaN, so that a result that depends on scratch shows.
        const size_t bytes = bench.api().attention_scratch(job.kv, n, n_head);
        std::vector<std::byte> scratch(with_scratch ? bytes : 0, std::byte{0xff});
        job.scratch = bench.in_out(scratch.data(), static_cast<int64_t>(scratch.size()));
        job.scratch_bytes = scratch.size();
        if (split != nullptr) *split = bytes > 0;
        bench.finish(bench.api().attention(job, bench.stream()));
    });
}

int moepic_test_device_conv(int device, float* x, int64_t n, int64_t cut, const float* taps, int64_t n_taps, int64_t n_channels, int silu,
                            const float* from, float* middle, float* to) {
    return guard([&] {
        Bench bench(device);
        device::ConvJob job;
        job.x = bench.in_out(x, n * n_channels);
        job.n_channels = n_channels;
        job.taps = bench.in(taps, n_taps * n_channels);
        job.n_taps = n_taps;
        job.silu = silu != 0;
        Slots slots(n, cut, (n_taps - 1) * n_channels, from, middle, to);
        job.states = slots.on(bench);
        bench.finish(bench.api().conv(job, bench.stream()));
        slots.bring_back();
    });
}

int moepic_test_device_delta_gates(int device, int64_t n, int64_t n_channels, int64_t n_head_k, int64_t n_head_v, int64_t head_dim_k,
                                   float* channels, float length_eps, const float* raw_beta, const float* alpha, const float* rate,
                                   const float* alpha_bias, float* beta, float* decay) {
    return guard([&] {
        Bench bench(device);
        device::DeltaGatesJob job;
        job.n = n;
        job.n_channels = n_channels;
        job.n_head_k = n_head_k;
        job.n_head_v = n_head_v;
        job.head_dim_k = head_dim_k;
        job.channels = bench.in_out(channels, n * n_channels);
        job.length_eps = length_eps;
        job.raw_beta = bench.in(raw_beta, n * n_head_v * (alpha ? 1 : 2));
        job.alpha = bench.in(alpha, n * n_head_v);
        job.rate = bench.in(rate, n_head_v);
        job.alpha_bias = bench.in(alpha_bias, n_head_v);
        job.beta = bench.in_out(beta, n * n_head_v);
        job.decay = bench.in_out(decay, n * n_head_v);
        bench.finish(bench.api().delta_gates(job, bench.stream()));
    });
}

int moepic_test_device_delta_rule(int device, const moepic_test_device_rule_job* given) {
    return guard([&] {
        Bench bench(device);
        device::DeltaRuleJob job;
        job.n_channels = given->n_channels;
        job.n_head_k = given->n_head_k;
        job.n_head_v = given->n_head_v;
        job.head_dim_k = given->head_dim_k;
        job.head_dim_v = given->head_dim_v;
        job.tiled_value_heads = given->tiled_value_heads != 0;
        job.channels = bench.in(given->channels, given->n * job.n_channels);
        job.beta = bench.in(given->beta, given->n * job.n_head_v);
        job.decay = bench.in(given->decay, given->n * job.n_head_v);
        job.out = bench.in_out(given->out, given->n * job.n_head_v * job.head_dim_v);
        job.state_offset = given->state_offset;
        const int64_t floats = given->state_offset + job.n_head_v * ops::delta_state_floats(job.head_dim_k, job.head_dim_v);
        Slots slots(given->n, given->cut, floats, given->from, given->middle, given->to);
        job.states = slots.on(bench);
        bench.finish(bench.api().delta_rule(job, bench.stream()));
        slots.bring_back();
    });
}

int moepic_test_route(int device, int isa, const moepic_test_route_job* given) {
    return guard([&] {
        if (device < 0) {
            const ops::Kernels* kernels = ops::find_kernels(static_cast<ops::Isa>(isa));
            if (kernels == nullptr) fail(Code::unsupported, "ops: this machine or build has no kernels for instruction set ", isa);
            Config config;
            config.scoring = static_cast<Scoring>(given->scoring);
            config.n_group = given->n_group;
            config.n_group_used = given->n_group_used;
            config.groups_by_best = given->groups_by_best != 0;
            config.renormalise = given->renormalise != 0;
            config.router_scale = given->router_scale;
            LayerConfig layer;
            layer.n_expert = given->n_expert;
            layer.n_expert_used = given->k;
            for (int64_t t = 0; t < given->n; ++t) {
                float* const weights = given->weights + t * given->k;
                int32_t* const ids = given->ids + t * given->k;
                route_token(config, layer, *kernels, given->selection_bias, given->logits + t * given->n_expert, ids, weights);
                for (int64_t j = 0; given->expert_scale && j < given->k; ++j) weights[j] *= given->expert_scale[ids[j]];
            }
            return;
        }
        Bench bench(device);
        device::RouteJob job;
        job.n = given->n;
        job.n_expert = given->n_expert;
        job.k = given->k;
        job.scoring = given->scoring;
        job.n_group = given->n_group;
        job.n_group_used = given->n_group_used;
        job.groups_by_best = given->groups_by_best != 0;
        job.renormalise = given->renormalise != 0;
        job.router_scale = given->router_scale;
        job.selection_bias = bench.in(given->selection_bias, job.n_expert);
        job.expert_scale = bench.in(given->expert_scale, job.n_expert);
        job.logits = bench.in_out(given->logits, job.n * job.n_expert);
        job.ids = bench.in_out(given->ids, job.n * job.k);
        job.weights = bench.in_out(given->weights, job.n * job.k);
        bench.finish(bench.api().route(job, bench.stream()));
    });
}

int moepic_test_device_list_tasks(int device, moepic_test_task_list_job* given) {
    return guard([&] {
        Bench bench(device);
        const int64_t n_entries = given->n * given->k, n_tasks = n_entries * given->n_granules;
        std::vector<const std::byte*> granules;
        for (int64_t i = 0; i < given->n_expert * given->n_granules; ++i)
            granules.push_back(reinterpret_cast<const std::byte*>(given->granules[i]));
        std::vector<device::ExpertTask> tasks(static_cast<size_t>(n_tasks));
        const device::Library& library = bench.library();
        constexpr uint64_t kLetters = 4;
        const auto most_ids = static_cast<size_t>(n_entries) + 1;
        const device::HostMemory ids = device::allocate_host(library, kLetters * most_ids * sizeof(int32_t), "ids of letters"),
                                 flags = device::allocate_host(library, kLetters * sizeof(uint32_t), "flags of letters");
        std::fill_n(flags.as<uint32_t>(), kLetters, 0u);
        device::TaskListJob job;
        job.n = given->n;
        job.k = given->k;
        job.n_granules = given->n_granules;
        job.ids = bench.in(given->ids, n_entries);
        job.weights = bench.in(given->weights, n_entries);
        job.granules = bench.in(granules.data(), static_cast<int64_t>(granules.size()));
        job.tasks = bench.in_out(tasks.data(), n_tasks);
        job.entry_token = bench.in_out(given->entry_token, n_entries);
        job.entry_weight = bench.in_out(given->entry_weight, n_entries);
        job.token_entry = bench.in_out(given->token_entry, given->n * (given->k + 1));
        const uint64_t letter = given->n_written % kLetters;
        job.letters = {bench.in_out(&given->n_written, 1), kLetters, static_cast<int64_t>(most_ids), ids.as<int32_t>(),
                       flags.as<uint32_t>()};
        bench.finish(bench.api().list_tasks(job, bench.stream()));
        for (size_t i = 0; i < tasks.size(); ++i) {
            const device::ExpertTask& task = tasks[i];
            given->task_data[i] = reinterpret_cast<uint64_t>(task.data);
            const int32_t fields[] = {task.granule, task.first_entry, task.n_entries, task.first_row};
            std::copy_n(fields, 4, given->tasks + 4 * i);
        }
        std::copy_n(ids.as<int32_t>() + letter * most_ids, n_entries, given->told);
        given->flag = flags.as<uint32_t>()[letter];
    });
}
