#include "engine/device_model.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/log.h"

namespace moepic {
namespace {

constexpr size_t kStageBytes = size_t{16} << 20;
// The CPU lane's rate per thread until it has been measured.
constexpr double kCpuBytesS = 8e9;

// Carries pointers into one memory over to another.
class Carrier {
public:
    Carrier(const Region& from, std::byte* to) : begin_(from.data()), end_(from.data() + from.size()), to_(to) {}

    template <class T>
    void carry(const T*& pointer) const noexcept {
        const auto* at = reinterpret_cast<const std::byte*>(pointer);
        if (at >= begin_ && at < end_) pointer = reinterpret_cast<const T*>(to_ + (at - begin_));
    }
    void carry(Linear& linear) const noexcept {
        carry(linear.w.data);
        carry(linear.bias);
    }
    void carry(std::optional<ExpertSet>& set) const noexcept {
        if (!set) return;
        carry(set->strips);  // a shared expert's; routed ones lie elsewhere
        carry(set->down_bias);
    }
    void carry(StateMixerWeights& w) const noexcept {
        for (Linear* linear : {&w.in, &w.out, &w.gate, &w.beta, &w.alpha}) carry(*linear);
        for (const float** floats : {&w.taps, &w.alpha_bias, &w.rate, &w.norm}) carry(*floats);
    }
    void carry(LayerWeights& w) const noexcept {
        for (Linear* linear : {&w.wq, &w.wk, &w.wv, &w.wo, &w.wq_a, &w.wk_b, &w.wv_b, &w.router, &w.shared_gate}) carry(*linear);
        for (const float** floats :
             {&w.attn_norm, &w.q_norm, &w.k_norm, &w.sinks, &w.ffn_norm, &w.attn_norm_bias, &w.ffn_norm_bias, &w.post_attention_norm,
              &w.post_ffn_norm, &w.expert_norm, &w.post_expert_norm, &w.post_dense_norm, &w.router_norm}) {
            carry(*floats);
        }
        carry(w.state_mixer);
        carry(w.routed);
        carry(w.shared);
    }

private:
    const std::byte *begin_, *end_;
    std::byte* to_;
};

}  // namespace

const device::Library& open_device(DeviceKind kind, const std::string& folder) {
    return device::open_library(kind == DeviceKind::cuda ? device::Kind::cuda : device::Kind::emulated, folder);
}

DeviceModel::DeviceModel(const device::Library& library, const device::Info& info, const Region& host, const WeightsView& view,
                         bool cpu_lane, Graphs graphs)
    : library_(library),
      info_(info),
      cpu_lane_(cpu_lane),
      graphs_(graphs),
      memory_(device::allocate(library, host.size(), "the weights")),
      layers_(view.layers.begin(), view.layers.end()),
      output_norm_(view.output_norm),
      output_norm_bias_(view.output_norm_bias),
      output_(view.output) {
    const Carrier carrier(host, memory_.data());
    for (LayerWeights& layer : layers_) carrier.carry(layer);
    carrier.carry(output_norm_);
    carrier.carry(output_norm_bias_);
    carrier.carry(output_);
}

void DeviceModel::upload(const Region& host, const std::function<bool(uint64_t, uint64_t)>& progress) {
    const device::OwnedStream stream(library_);
    const device::HostMemory stages[2] = {device::allocate_host(library_, kStageBytes, "uploading weights"),
                                          device::allocate_host(library_, kStageBytes, "uploading weights")};
    const device::OwnedEvent done[2] = {device::OwnedEvent(library_), device::OwnedEvent(library_)};
    size_t at = 0;
    for (int turn = 0; at < host.size(); turn ^= 1) {
        if (progress && !progress(at, host.size())) {
            stream.synchronize();
            fail(Code::cancelled, "load: cancelled while weights went to the device");
        }
        const size_t bytes = std::min(kStageBytes, host.size() - at);
        done[turn].wait_host();
        std::memcpy(stages[turn].data(), host.data() + at, bytes);
        stream.copy(memory_.data() + at, stages[turn].data(), bytes);
        stream.record(done[turn]);
        at += bytes;
    }
    upload_router_floats(stream);
    stream.synchronize();
    if (progress) progress(host.size(), host.size());
}

void DeviceModel::upload_router_floats(const device::OwnedStream& stream) {
    const auto each = [&](auto visit) {
        for (LayerWeights& layer : layers_) {
            if (!layer.routed) continue;
            for (const float** floats : {&layer.selection_bias, &layer.expert_scale}) {
                if (*floats) visit(*floats, static_cast<size_t>(layer.routed->n_expert));
            }
        }
    };
    size_t bytes = 0;
    each([&](const float*&, size_t n) { bytes += Tables::bytes_of<float>(n); });
    router_floats_ = Tables(library_, device::allocate(library_, bytes, "biases and scales of routers"));
    each([&](const float*& floats, size_t n) {
        auto* to = router_floats_.take<float>(n);
        std::copy_n(floats, n, to);
        floats = router_floats_.on_device(to);
    });
    router_floats_.upload(stream);
}

PinnedStrips& DeviceModel::hold(const Region& strips, uint64_t limit) {
    return strips_.emplace(library_, info_.index, std::span(strips.data(), strips.size()), limit);
}

device::DeviceMemory DeviceModel::allocate(size_t bytes, const char* what) const {
    for (;;) {
        try {
            return device::allocate(library_, bytes, what);
        } catch (const Error& error) {
            if (error.code() != Code::no_memory || !experts_) throw;
            uint64_t free = 0, total = 0;
            library_.check(library_->memory(&free, &total), "asking for free memory");
            if (free + experts_->arena_bytes() < bytes) throw;  // nothing is given up in vain
            // A device that still refuses, for the sizes of its pages or another program, is given one more piece each time.
            if (!make_room(bytes > free ? bytes - free : 1, error)) throw;
        }
    }
}

bool DeviceModel::make_room(uint64_t bytes, const Error& why) const {
    const uint64_t cache = experts_ ? experts_->arena_bytes() : 0;
    if (cache == 0) return false;
    if (strict_) fail(why.code(), why.text(), "; the expert cache has ", human_bytes(cache), ", and strict keeps it");
    const uint64_t given = experts_->give_back(bytes);
    log_message(LogLevel::warning, cat("device: the expert cache gives back ", human_bytes(given), " of ", human_bytes(cache),
                                       ", for there is not enough memory left: ", why.text()));
    return given > 0;
}

void DeviceModel::start(std::vector<StreamLayer> layers, int64_t cache_bytes, const StreamOptions& options) {
    strict_ = options.strict;
    StreamOptions device_options = options;
    device_options.cpu_bytes_s = !cpu_lane_ ? 0.0 : options.cpu_bytes_s > 0.0 ? options.cpu_bytes_s : kCpuBytesS;
    experts_ =
        std::make_unique<DeviceExperts>(library_, info_.name, *strips_, std::move(layers), cache_bytes, device_options,
                                        options.cpu_bytes_s > 0.0 ? options.cpu_bytes_s : std::numeric_limits<double>::infinity(), graphs_);
}

}  // namespace moepic
