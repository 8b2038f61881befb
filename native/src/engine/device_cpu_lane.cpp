#include "engine/device_cpu_lane.h"

#include <algorithm>
#include <thread>

#include "engine/device_model.h"

namespace moepic {
namespace {

constexpr int kFewTokens = DeviceExperts::kFewTokens;

}  // namespace

DeviceCpuLane::DeviceCpuLane(const Model& model, Workspace& workspace, int64_t n_batch)
    : model_(model),
      workspace_(workspace),
      n_batch_(n_batch),
      n_embd_(model.config().n_embd),
      threads_(static_cast<size_t>(workspace.pool().size())) {}

void DeviceCpuLane::place(Carver& pinned, Carver& host) {
    if (!model_.device()->has_cpu_lane()) return;
    const int64_t few = std::min<int64_t>(n_batch_, kFewTokens);
    int64_t rows_few = 0, entries_many = 0, granule = 0;
    size_t act_row = 0;
    ActMask mask = 0;
    for (int64_t il = 0; il < model_.config().n_layer; ++il) {
        const LayerWeights& layer = model_.layer(il);
        if (!layer.routed) continue;
        const StripLayout& layout = layer.routed->layout;
        const int64_t used = model_.config().layers[static_cast<size_t>(il)].n_expert_used;
        rows_few = std::max(rows_few, few * used * layout.n_granules);
        entries_many = std::max(entries_many, n_batch_ * used);
        granule = std::max(granule, layout.granule);
        act_row = std::max(act_row, intermediate_row_bytes(layout));
        mask |= ActMask{1} << static_cast<int>(ops::act_kind(layout.gate_type));
        mask |= ActMask{1} << static_cast<int>(ops::act_kind(layout.up_type));
    }
    const auto n_embd = static_cast<size_t>(n_embd_);
    const auto most = static_cast<int64_t>(model_.staging_bytes() / kFramesPerRows / (n_embd * sizeof(float)));
    n_rows_ = std::max(rows_few, n_batch_ > kFewTokens ? std::min(entries_many, most) : 0);
    for (int kind = 0; kind < kActKinds; ++kind) {
        if (!(mask >> kind & 1)) continue;
        acts_.stride[kind] = ops::act_bytes(static_cast<ops::ActKind>(kind), n_embd_);
        acts_.data[kind] = pinned.take<std::byte>(static_cast<size_t>(n_batch_) * acts_.stride[kind]);
    }
    unheard_ = pinned.take<uint32_t>(1);
    returned_ = pinned.take<float>(static_cast<size_t>(n_rows_) * n_embd);
    const auto block = static_cast<size_t>(std::min<int64_t>(n_batch_, kEntryBlock));
    for (Thread& thread : threads_) {
        thread.granule.gate = host.take<float>(block * static_cast<size_t>(granule));
        thread.granule.up = host.take<float>(block * static_cast<size_t>(granule));
        thread.intermediate = host.take<std::byte>(block * act_row);
        thread.sums = host.take<float>(block * n_embd);
    }
    n_added_ = std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(n_rows_));
}

void DeviceCpuLane::send(const Acts& acts, int64_t n, const device::OwnedStream& stream) const {
    const device::Library& library = model_.device()->library();
    for (int kind = 0; kind < kActKinds; ++kind) {
        if (!acts_.data[kind] || !acts.data[kind]) continue;
        const size_t bytes = static_cast<size_t>(n) * acts_.stride[kind];
        if (n <= kFewTokens) {  // a kernel's stores begin sooner than a copy
            library.check(library->post(acts.data[kind], bytes / 4, acts_.data[kind], unheard_, 0, stream.get()), "sending activations");
        } else {
            stream.copy(acts_.data[kind], acts.data[kind], bytes);
        }
    }
}

void DeviceCpuLane::share(DeviceExperts::Pass& pass, const Layer& layer, const Launch& launch, float* partials,
                          const device::OwnedStream& stream) {
    ThreadPool& pool = workspace_.pool();
    if (layer.is_many) {
        for (int64_t row = 0; row < n_rows_; ++row) n_added_[static_cast<size_t>(row)].store(0, std::memory_order_relaxed);
    }
    const int none = static_cast<int>(pass.placed().size());
    std::atomic<int> lowest{none};
    std::atomic<bool> is_over{false};
    std::atomic<int> n_helpers{pool.size() - 1};
    const auto compute_one = [&](int thread) {
        const int placed = pass.take_in_place();
        if (placed < 0) return false;
        for (int seen = lowest.load(); placed < seen && !lowest.compare_exchange_weak(seen, placed);) {
        }
        compute(pass, layer, placed, thread);
        return true;
    };
    const auto feed_link = [&] {
        try {
            while (!pass.is_queue_empty()) {
                if (const DeviceExperts::Range range = pass.next()) {
                    launch(range);
                    pass.launched(range);
                } else if (n_helpers > 0 || !compute_one(0)) {
                    std::this_thread::yield();
                }
            }
        } catch (...) {
            is_over = true;
            throw;
        }
    };
    pool.run_beside(feed_link, pool.size() - 1, [&](int64_t, int thread) {
        while (!is_over && !pass.is_queue_empty()) {
            if (compute_one(thread)) continue;
            // A token's layer is short. A prompt's is not, and what is left for the link only shrinks: it will not want help later, unless
            // it turns out to be slower, and then its thread does that.
            if (layer.is_many) break;
            std::this_thread::yield();
        }
        --n_helpers;
    });
    if (lowest == none) return;
    const int64_t from = layer.first_row[static_cast<size_t>(lowest.load())];
    stream.copy(partials + from * n_embd_, returned_ + (from - first_row(layer)) * n_embd_,
                static_cast<size_t>((layer.n_rows - from) * n_embd_) * sizeof(float));
    pass.returned();
}

void DeviceCpuLane::compute(DeviceExperts::Pass& pass, const Layer& layer, int placed, int thread) {
    const int64_t start = now_ns();
    const StripLayout& layout = layer.set->layout;
    const ops::Kernels& kernels = workspace_.kernels();
    const DeviceExperts::Placed& at = pass.placed()[static_cast<size_t>(placed)];
    const Group& group = layer.groups[static_cast<size_t>(at.want)];
    const std::byte* granule = pass.host_data(placed);
    const size_t stride = intermediate_row_bytes(layout);
    Thread scratch = threads_[static_cast<size_t>(thread)];
    scratch.granule.kernel = workspace_.scratch(thread);
    GranuleInput input;
    std::copy_n(acts_.data, kActKinds, input.acts);
    std::copy_n(acts_.stride, kActKinds, input.act_stride);
    input.glu = model_.config().recipe->glu;
    for (int32_t first = 0; first < group.n_entries; first += kEntryBlock) {
        input.n = std::min(kEntryBlock, group.n_entries - first);
        input.rows = layer.entry_token + group.first_entry + first;
        input.entry_weight = layer.entry_weight ? layer.entry_weight + group.first_entry + first : nullptr;
        activate_granule(kernels, layout, granule, input, scratch.granule);
        quantize_granule(kernels, layout, input.n, scratch.granule, scratch.intermediate, stride);
        const int64_t row = layer.first_row[static_cast<size_t>(placed)] + first - first_row(layer);
        float* sums = returned_ + row * n_embd_;
        const bool adds = layer.is_many && at.granule > 0;
        project_granule(kernels, layout, granule, input.n, scratch.intermediate, stride, adds ? scratch.sums : sums, n_embd_,
                        scratch.granule.kernel);
        if (!layer.is_many) continue;
        std::atomic<int32_t>& n_added = n_added_[static_cast<size_t>(row)];
        if (adds) {  // whoever has the granule before it took it earlier, and waits for earlier ones only
            while (n_added.load(std::memory_order_acquire) < at.granule) std::this_thread::yield();
            kernels.add(sums, scratch.sums, input.n * n_embd_);
        }
        n_added.store(at.granule + 1, std::memory_order_release);
    }
    pass.done_in_place(placed, 1e-9 * static_cast<double>(now_ns() - start));
}

}  // namespace moepic
