#include "capi/testing/device_bench.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "base/thread_pool.h"
#include "capi/guard.h"
#include "device/buffer.h"
#include "measure/granules.h"
#include "ops/ops.h"
#include "quant/types.h"

namespace {

using namespace moepic;
using Clock = std::chrono::steady_clock;

Type type_of(uint32_t id) {
    const TypeInfo* info = find_type(id);
    if (info == nullptr) fail(Code::argument, "device: no weight type has the id ", id);
    return info->type;
}

void need(bool is_right, const char* what) {
    if (!is_right) fail(Code::argument, "device bench: ", what);
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

// A device with one stream, and buffers that live as long.
class Bench {
public:
    explicit Bench(int32_t device) : library(opened(device)), stream(library) {}

    // Random bytes: neither time nor power of a kernel should come from zeros.
    device::DeviceMemory random(size_t bytes, const char* what) {
        device::DeviceMemory out = device::allocate(library, bytes, what);
        const size_t step = std::min(bytes, size_t{16} << 20);
        const device::HostMemory source = device::allocate_host(library, step, what);
        std::minstd_rand draw(1);
        for (size_t i = 0; i < step; ++i) source.data()[i] = static_cast<std::byte>(draw() >> 8);
        for (size_t at = 0; at < bytes; at += step) stream.copy(out.data() + at, source.data(), std::min(step, bytes - at));
        stream.synchronize();
        return out;
    }
    // n tokens of ordinary activations for weights of `mask`'s kinds.
    device::DeviceMemory tokens(uint32_t mask, int64_t cols, int64_t n, device::Acts& acts) {
        const size_t float_bytes = static_cast<size_t>(n * cols) * sizeof(float);
        const device::HostMemory x = device::allocate_host(library, float_bytes, "tokens");
        std::mt19937 draw(2);
        std::normal_distribution<float> normal;
        std::generate_n(x.as<float>(), n * cols, [&] { return normal(draw); });
        size_t bytes = 0;
        for (int kind = 0; kind < device::kActKinds; ++kind) {
            acts.stride[kind] = ops::act_bytes(static_cast<ops::ActKind>(kind), cols);
            if (mask >> kind & 1u) bytes += static_cast<size_t>(n) * acts.stride[kind];
        }
        device::DeviceMemory out = device::allocate(library, bytes + float_bytes, "activations");
        std::byte* at = out.data() + float_bytes;
        for (int kind = 0; kind < device::kActKinds; ++kind) {
            if (!(mask >> kind & 1u)) continue;
            acts.data[kind] = at;
            at += static_cast<size_t>(n) * acts.stride[kind];
        }
        stream.copy(out.data(), x.data(), float_bytes);
        library.check(library->quantize(mask, out.as<float>(), cols, cols, n, acts, stream.get()), "quantizing");
        stream.synchronize();
        return out;
    }
    template <class T>
    device::DeviceMemory upload(const std::vector<T>& values, const char* what) {
        const size_t bytes = values.size() * sizeof(T);
        const device::HostMemory source = device::allocate_host(library, bytes, what);
        std::memcpy(source.data(), values.data(), bytes);
        device::DeviceMemory out = device::allocate(library, bytes, what);
        stream.copy(out.data(), source.data(), bytes);
        stream.synchronize();
        return out;
    }
    // Seconds of one step: work(i) puts step i on the stream, and a pass is n of them between two events.
    double time(int32_t n, double seconds, const std::function<void(int32_t)>& work) {
        const device::OwnedEvent begin(library), end(library);
        std::vector<double> found;
        const auto until = Clock::now() + std::chrono::duration<double>(seconds);
        for (bool is_warm = false; !is_warm || found.empty() || Clock::now() < until; is_warm = true) {
            stream.record(begin);
            for (int32_t i = 0; i < n; ++i) work(i);
            stream.record(end);
            stream.synchronize();
            double took = 0.0;
            library.check(library->elapsed(begin.get(), end.get(), &took), "reading the time between events");
            if (is_warm) found.push_back(took / n);
        }
        return median(std::move(found));
    }

    const device::Library& library;
    const device::OwnedStream stream;

private:
    static const device::Library& opened(int32_t device) {
        const device::Library& found = device::open_library(device == 0 ? device::Kind::emulated : device::Kind::cuda);
        found.open(0);
        return found;
    }
};

uint32_t bit_of(Type type) {
    return 1u << static_cast<int>(ops::act_kind(type));
}

size_t aligned(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

}  // namespace

int32_t moepic_test_device_rates(moepic_test_device_rates_result* out, int32_t device, int64_t n_bytes, int64_t piece_bytes,
                                 int32_t n_threads, double seconds) {
    return guard([&] {
        need(piece_bytes >= 4096 && piece_bytes <= n_bytes && n_bytes <= int64_t{1} << 36,
             "expected 4096 <= piece_bytes <= n_bytes <= 2^36");
        need(n_threads >= 0 && seconds > 0.0 && seconds <= 60.0, "expected n_threads from 0 and seconds in (0, 60]");
        Bench bench(device);
        const auto bytes = static_cast<size_t>(n_bytes), piece = static_cast<size_t>(piece_bytes);
        const auto n_pieces = static_cast<int32_t>(n_bytes / piece_bytes);
        const device::DeviceMemory from = bench.random(bytes, "a buffer to copy from"),
                                   to = device::allocate(bench.library, bytes, "a buffer to copy to");
        const device::HostMemory host = device::allocate_host(bench.library, bytes, "a buffer behind the link");
        std::memset(host.data(), 1, bytes);
        const auto to_device = [&](int32_t i) {
            const size_t at = static_cast<size_t>(i) * piece;
            bench.stream.copy(to.data() + at, host.data() + at, piece);
        };
        const auto to_host = [&](int32_t i) {
            const size_t at = static_cast<size_t>(i) * piece;
            bench.stream.copy(host.data() + at, from.data() + at, piece);
        };
        out->copy_bytes_s =
            2.0 * static_cast<double>(bytes) / bench.time(1, seconds, [&](int32_t) { bench.stream.copy(to.data(), from.data(), bytes); });
        const auto size = static_cast<double>(piece);
        out->to_device_bytes_s = size / bench.time(n_pieces, seconds, to_device);
        out->to_host_bytes_s = size / bench.time(n_pieces, seconds, to_host);

        ThreadPool pool(n_threads);
        out->n_threads = pool.size();
        measure::GranuleWork work(pool, *ops::find_kernels(ops::best_isa()), bytes);
        work.run(0.2 * seconds);
        out->cpu_bytes_s = work.run(seconds);
        // The CPU is at it for as long as the link is timed.
        std::atomic<bool> is_timed{false};
        std::vector<double> beside;
        std::thread cpu([&] {
            while (!is_timed) beside.push_back(work.run(0.1 * seconds));
        });
        try {
            out->to_device_together_bytes_s = size / bench.time(n_pieces, seconds, to_device);
        } catch (...) {
            is_timed = true;
            cpu.join();
            throw;
        }
        is_timed = true;
        cpu.join();
        if (beside.size() > 2) beside.pop_back();  // it may have run on alone
        out->cpu_together_bytes_s = median(std::move(beside));
    });
}

int32_t moepic_test_device_time_matmul(double* launch_s, int64_t* weight_bytes, int32_t device, uint32_t type, int64_t rows, int64_t cols,
                                       int64_t n_tokens, int32_t n_copies, double seconds) {
    return guard([&] {
        need(rows >= 1 && cols >= 1 && n_tokens >= 1 && n_copies >= 1, "expected rows, cols, n_tokens and n_copies from 1");
        need(seconds > 0.0 && seconds <= 60.0, "expected seconds in (0, 60]");
        Bench bench(device);
        device::MatmulList list;
        list.n_jobs = 1;
        list.n_tokens = n_tokens;
        device::MatmulJob& job = list.jobs[0];
        job.w = {type_of(type), rows, cols, nullptr};
        const size_t step = aligned(ops::tiled_bytes(job.w.type, rows, cols));
        const device::DeviceMemory weights = bench.random(step * static_cast<size_t>(n_copies), "weights");
        device::Acts acts{};
        const device::DeviceMemory tokens = bench.tokens(bit_of(job.w.type), cols, n_tokens, acts);
        const device::DeviceMemory y = device::allocate(bench.library, static_cast<size_t>(n_tokens * rows) * sizeof(float), "results");
        const auto kind = static_cast<int>(ops::act_kind(job.w.type));
        job.acts = acts.data[kind];
        job.act_stride = acts.stride[kind];
        job.y = y.as<float>();
        job.y_stride = rows;
        *weight_bytes = static_cast<int64_t>(ops::tiled_bytes(job.w.type, rows, cols));
        *launch_s = bench.time(n_copies, seconds, [&](int32_t i) {
            job.w.data = weights.data() + step * static_cast<size_t>(i);
            bench.library.check(bench.library->matmul(list, bench.stream.get()), "a product");
        });
    });
}

int32_t moepic_test_device_time_experts(moepic_test_device_expert_times* out, int32_t device, uint32_t gate_up_type, uint32_t down_type,
                                        int64_t n_embd, int64_t granule, int32_t n_tasks, int32_t n_groups, double seconds) {
    return guard([&] {
        need(n_embd >= 1 && granule >= 1 && n_tasks >= 1 && n_groups >= 1, "expected n_embd, granule, n_tasks and n_groups from 1");
        need(seconds > 0.0 && seconds <= 60.0, "expected seconds in (0, 60]");
        Bench bench(device);
        // As the engine has it in decode: an entry is one granule's, with a row of intermediates and a row of partials of its own.
        device::ExpertJob job;
        device::GranuleShape& shape = job.shape;
        shape.n_embd = n_embd;
        shape.granule = granule;
        shape.n_granules = 1;
        shape.gate_type = shape.up_type = type_of(gate_up_type);
        shape.down_type = type_of(down_type);
        const size_t gate = ops::tiled_bytes(shape.gate_type, granule, n_embd), down = ops::tiled_bytes(shape.down_type, n_embd, granule);
        shape.up_offset = aligned(gate);
        shape.down_offset = 2 * shape.up_offset;
        const size_t step = shape.down_offset + aligned(down);
        const device::DeviceMemory granules = bench.random(step * static_cast<size_t>(n_tasks * n_groups), "granules");
        std::vector<device::ExpertTask> all;
        for (int32_t i = 0; i < n_tasks * n_groups; ++i)
            all.push_back({granules.data() + step * static_cast<size_t>(i), 0, i % n_tasks, 1, i % n_tasks});
        const device::DeviceMemory tasks = bench.upload(all, "tasks"),
                                   entry_token = bench.upload(std::vector<int32_t>(static_cast<size_t>(n_tasks), 0), "tokens of entries"),
                                   tokens = bench.tokens(bit_of(shape.gate_type), n_embd, 1, job.acts);
        const auto entries = static_cast<size_t>(n_tasks);
        const device::DeviceMemory intermediate = device::allocate(
                                       bench.library, entries * ops::act_bytes(ops::act_kind(shape.down_type), granule), "intermediates"),
                                   partials =
                                       device::allocate(bench.library, entries * static_cast<size_t>(n_embd) * sizeof(float), "partials");
        job.n_tasks = n_tasks;
        job.most_entries = 1;
        job.entry_token = entry_token.as<int32_t>();
        job.glu = ops::GluKind::silu;
        job.intermediate = intermediate.data();
        job.partials = partials.as<float>();
        const auto group = [&](int32_t i) -> const device::ExpertJob& {
            job.tasks = tasks.as<device::ExpertTask>() + i * n_tasks;
            return job;
        };
        out->intermediate_bytes = static_cast<int64_t>(entries * 2 * gate);
        out->down_bytes = static_cast<int64_t>(entries * down);
        out->intermediate_s = bench.time(n_groups, seconds, [&](int32_t i) {
            bench.library.check(bench.library->expert_intermediate(group(i), bench.stream.get()), "intermediates of experts");
        });
        out->down_s = bench.time(n_groups, seconds, [&](int32_t i) {
            bench.library.check(bench.library->expert_down_few(group(i), bench.stream.get()), "down of experts");
        });
    });
}
