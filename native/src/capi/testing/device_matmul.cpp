#include "capi/testing/device_matmul.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "capi/guard.h"
#include "device/buffer.h"
#include "ops/ops.h"
#include "quant/types.h"

namespace {

using namespace moepic;

Type type_of(uint32_t id) {
    const TypeInfo* info = find_type(id);
    if (info == nullptr) fail(Code::argument, "device: no weight type has the id ", id);
    return info->type;
}

// One stream of one device, and arrays of the caller's that live there for the time of a call. Each array is an allocation of its own size,
// so that an emulated device notices what reaches beyond it.
class Bench {
public:
    explicit Bench(int device)
        : library_(device::open_library(device == 0 ? device::Kind::emulated : device::Kind::cuda)),
          info_(library_.open(0)),
          stream_(library_) {}

    const device::Api& api() const { return library_.api(); }
    device::Stream stream() const { return stream_.get(); }

    template <class T>
    const T* in(const T* from, int64_t n) {
        return place(const_cast<T*>(from), n, false);
    }
    // Copied back by finish().
    template <class T>
    T* in_out(T* both, int64_t n) {
        return place(both, n, true);
    }

    void finish(int32_t code) {
        library_.check(code, "running a step");
        for (const Array& array : arrays_)
            if (array.comes_back) stream_.copy(array.host.data(), array.there.data(), array.host.size());
        stream_.synchronize();
        for (const Array& array : arrays_)
            if (array.comes_back) std::memcpy(array.caller, array.host.data(), array.host.size());
    }

private:
    struct Array {
        void* caller;
        device::HostMemory host;
        device::DeviceMemory there;
        bool comes_back;
    };

    template <class T>
    T* place(T* caller, int64_t n, bool comes_back) {
        if (caller == nullptr || n == 0) return nullptr;
        const size_t bytes = static_cast<size_t>(n) * sizeof(T);
        arrays_.push_back({caller, device::allocate_host(library_, bytes, "a test's array"),
                           device::allocate(library_, bytes, "a test's array"), comes_back});
        const Array& array = arrays_.back();
        std::memcpy(array.host.data(), caller, bytes);
        stream_.copy(array.there.data(), array.host.data(), bytes);
        return array.there.as<T>();
    }

    const device::Library& library_;
    device::Info info_;
    device::OwnedStream stream_;
    std::deque<Array> arrays_;
};

int64_t act_bytes(Type type, int64_t cols) {
    return static_cast<int64_t>(ops::act_bytes(ops::act_kind(type), cols));
}

}  // namespace

int moepic_test_device_quantize(int device, uint32_t mask, const float* x, int64_t n, int64_t stride, int64_t cols, void* floats,
                                void* blocks_32, void* blocks_256) {
    return guard([&] {
        Bench bench(device);
        void* const given[] = {floats, blocks_32, blocks_256};
        device::Acts acts{};
        for (int kind = 0; kind < device::kActKinds; ++kind) {
            acts.stride[kind] = ops::act_bytes(static_cast<ops::ActKind>(kind), cols);
            acts.data[kind] = bench.in_out(static_cast<std::byte*>(given[kind]), n * static_cast<int64_t>(acts.stride[kind]));
        }
        bench.finish(bench.api().quantize(mask, bench.in(x, n * stride), stride, cols, n, acts, bench.stream()));
    });
}

int moepic_test_device_matmul(int device, const moepic_test_device_matmul_job* jobs, int n_jobs, int64_t n_tokens) {
    return guard([&] {
        if (n_jobs < 1 || n_jobs > device::kMostMatmuls) fail(Code::argument, "device: a list has 1 to 4 matrices, not ", n_jobs);
        Bench bench(device);
        device::MatmulList list;
        list.n_jobs = n_jobs;
        list.n_tokens = n_tokens;
        for (int j = 0; j < n_jobs; ++j) {
            const moepic_test_device_matmul_job& from = jobs[j];
            device::MatmulJob& to = list.jobs[j];
            to.w = {type_of(from.type), from.rows, from.cols, nullptr};
            to.w.data = bench.in(static_cast<const std::byte*>(from.tiles),
                                 static_cast<int64_t>(ops::tiled_bytes(to.w.type, from.rows, from.cols)));
            const int64_t row = act_bytes(to.w.type, from.cols);
            to.acts = bench.in(static_cast<const std::byte*>(from.acts), from.n_group * n_tokens * row);
            to.act_stride = static_cast<size_t>(row);
            to.act_group = static_cast<size_t>(n_tokens * row);
            to.y = bench.in_out(from.y, n_tokens * from.y_stride);
            to.y_stride = from.y_stride;
            to.bias = bench.in(from.bias, from.rows);
            to.n_group = from.n_group;
            to.y_group = from.y_group;
        }
        bench.finish(bench.api().matmul(list, bench.stream()));
    });
}

int moepic_test_device_experts(int device, const moepic_test_device_expert_job* given) {
    return guard([&] {
        Bench bench(device);
        device::ExpertJob job;
        job.shape = {given->n_embd,
                     given->granule,
                     given->n_granules,
                     type_of(given->gate_type),
                     type_of(given->up_type),
                     type_of(given->down_type),
                     static_cast<size_t>(given->up_offset),
                     static_cast<size_t>(given->down_offset),
                     static_cast<size_t>(given->gate_bias_offset),
                     static_cast<size_t>(given->up_bias_offset)};
        const std::byte* granules = bench.in(static_cast<const std::byte*>(given->granules), given->n_tasks * given->granule_bytes);
        std::vector<device::ExpertTask> tasks;
        for (int i = 0; i < given->n_tasks; ++i) {
            const int32_t* task = given->tasks + 4 * i;
            tasks.push_back({granules + i * given->granule_bytes, task[0], task[1], task[2], task[3]});
            job.most_entries = std::max(job.most_entries, task[2]);
        }
        std::vector<device::ExpertRun> runs;
        for (int i = 0; i < given->n_runs; ++i) runs.push_back({given->runs[2 * i], given->runs[2 * i + 1]});
        job.tasks = bench.in(tasks.data(), given->n_tasks);
        job.n_tasks = given->n_tasks;
        job.runs = bench.in(runs.data(), given->n_runs);
        job.n_runs = given->n_runs;
        const float* x = bench.in(given->x, given->n_tokens * given->n_embd);
        uint32_t mask = 0;
        for (const Type type : {job.shape.gate_type, job.shape.up_type}) mask |= 1u << static_cast<int>(ops::act_kind(type));
        std::vector<std::byte> rows[device::kActKinds];
        for (int kind = 0; kind < device::kActKinds; ++kind) {
            if (!(mask >> kind & 1u)) continue;
            job.acts.stride[kind] = ops::act_bytes(static_cast<ops::ActKind>(kind), given->n_embd);
            rows[kind].resize(static_cast<size_t>(given->n_tokens) * job.acts.stride[kind]);
            job.acts.data[kind] = bench.in_out(rows[kind].data(), static_cast<int64_t>(rows[kind].size()));
        }
        job.entry_token = bench.in(given->entry_token, given->n_entries);
        job.entry_weight = bench.in(given->entry_weight, given->n_entries);
        job.glu = static_cast<ops::GluKind>(given->glu);
        job.intermediate = bench.in_out(static_cast<std::byte*>(given->intermediate),
                                        given->n_entries * given->n_granules * act_bytes(job.shape.down_type, given->granule));
        job.partials = bench.in_out(given->partials, given->n_rows * given->n_embd);
        int32_t code = bench.api().quantize(mask, x, given->n_embd, given->n_embd, given->n_tokens, job.acts, bench.stream());
        if (code == device::kOk) code = bench.api().expert_intermediate(job, bench.stream());
        if (code == device::kOk) code = (job.n_runs > 0 ? bench.api().expert_down_many : bench.api().expert_down_few)(job, bench.stream());
        bench.finish(code);
    });
}

int moepic_test_device_reduce(int device, const moepic_test_device_reduce_job* given) {
    return guard([&] {
        Bench bench(device);
        device::ReduceJob job;
        job.n = given->n;
        job.n_embd = given->n_embd;
        job.k = given->k;
        job.x = bench.in_out(given->x, given->n * given->n_embd);
        job.shared_x = given->shared_x == given->x ? job.x : bench.in_out(given->shared_x, given->n * given->n_embd);
        job.residual_scale = given->residual_scale;
        job.token_entry = bench.in(given->token_entry, given->n * (given->k + 1));
        job.ids = bench.in(given->ids, given->n * given->k);
        job.weights = bench.in(given->weights, given->n * given->k);
        job.down_bias = bench.in(given->down_bias, given->n_expert * given->n_embd);
        job.partials = bench.in(given->partials, given->n_rows * given->n_embd);
        job.rows = bench.in(given->rows, given->n_row_numbers);
        job.n_granules = given->n_granules;
        job.shared_partials = bench.in(given->shared_partials, given->n_shared_rows * given->n_embd);
        job.shared_granules = given->shared_granules;
        job.first_shared = given->first_shared;
        job.shared_weight = bench.in(given->shared_weight, given->n);
        bench.finish(bench.api().reduce(job, bench.stream()));
    });
}
