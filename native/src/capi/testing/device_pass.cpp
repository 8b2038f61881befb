#include "capi/testing/device_pass.h"

#include <algorithm>

#include "capi/handles.h"
#include "device/library.h"
#include "engine/cpu_feed_forward.h"
#include "engine/decoder.h"
#include "engine/device_steps.h"

namespace {

using namespace moepic;

// The CPU's feed-forward for a pass whose steps are a device's.
class FeedForwardOnHost final : public FeedForward {
public:
    FeedForwardOnHost(const Model& model, Workspace& workspace, Steps& steps, int64_t n_batch)
        : FeedForward(model), steps_(steps), cpu_(model, workspace, n_batch), n_embd_(model.config().n_embd) {
        ActMask mask = 0;
        for (int64_t il = 0; il < model.config().n_layer; ++il) mask |= input_mask(il);
        const auto place = [&](Carver& carver) {
            for (ActSet* acts : {&router_, &routed_, &shared_}) acts->reserve(carver, mask, n_embd_, n_batch);
            for (float** rows : {&residual_, &x_, &shared_x_}) *rows = carver.take<float>(static_cast<size_t>(n_batch * n_embd_));
        };
        Carver size;
        place(size);
        region_ = Region(size.used(), "feed-forward on the host");
        Carver carver(region_.data());
        place(carver);
    }

    void run(int64_t il, const Work& work, int64_t n, int64_t first_position, const Probe& probe) override {
        if (il == 0) cpu_.begin(n);
        const ActMask mask = input_mask(il);
        fetch(*work.router, router_, mask, n);
        fetch(*work.routed, routed_, mask, n);
        fetch(*work.shared, shared_, mask, n);
        const bool apart = work.x != work.shared_x;
        fetch(work.residual, residual_, n * n_embd_);
        fetch(work.x, x_, n * n_embd_);
        if (apart) fetch(work.shared_x, shared_x_, n * n_embd_);
        cpu_.run(il, {residual_, &router_, &routed_, &shared_, x_, apart ? shared_x_ : x_}, n, first_position, probe);
        bring(x_, work.x, n * n_embd_);
        if (apart) bring(shared_x_, work.shared_x, n * n_embd_);
    }
    uint64_t scratch_bytes() const noexcept override { return region_.size() + cpu_.scratch_bytes(); }

private:
    void fetch(const float* from, float* to, int64_t n) { std::copy_n(steps_.read(from, n), n, to); }
    void fetch(const ActSet& from, const ActSet& to, ActMask mask, int64_t n) {
        for (int kind = 0; kind < kActKinds; ++kind) {
            if (!(mask >> kind & 1)) continue;
            const size_t bytes = to.acts().stride[kind] * static_cast<size_t>(n);
            fetch(reinterpret_cast<const float*>(from.acts().data[kind]), reinterpret_cast<float*>(to.acts().data[kind]),
                  static_cast<int64_t>(bytes / sizeof(float)));
        }
    }
    void bring(const float* from, float* to, int64_t n) {
        std::copy_n(from, n, steps_.stage(to, n));
        steps_.send();
    }

    Steps& steps_;
    CpuFeedForward cpu_;
    const int64_t n_embd_;
    Region region_;
    ActSet router_, routed_, shared_;
    float *residual_ = nullptr, *x_ = nullptr, *shared_x_ = nullptr;
};

}  // namespace

int moepic_test_device_pass(moepic_model* model, int kv_type, int64_t n_ctx, int64_t n_batch, const int32_t* tokens, int64_t n,
                            int64_t n_logits, float* logits) {
    return guard([&] {
        need(model, "model");
        const Model& m = *model->model;
        if (m.streamer()) fail(Code::argument, "device pass: the model's experts are streamed, expected a resident model");
        Workspace workspace(m.kernels(), 1, 0);
        // An emulated device reads the host's memory, so the model's own weights serve.
        DeviceSteps steps(device::open_library(device::Kind::emulated), 0, m.weights());
        FeedForwardOnHost feed_forward(m, workspace, steps, n_batch);
        KvCache kv(steps, m.config(), static_cast<ops::KvType>(kv_type), n_ctx, n_batch);
        SequenceState state(steps, m.config());
        Decoder decoder(m, workspace, steps, feed_forward, kv, n_batch, n_ctx);
        for (int64_t first = 0; first < n; first += n_batch) {
            const int64_t count = std::min(n_batch, n - first), wanted = std::clamp<int64_t>(first + count - (n - n_logits), 0, count);
            kv.begin(count);
            state.begin(count, count - 1);
            decoder.forward(kv, state, tokens + first, count, first, wanted, logits, {}, [](int64_t) { return false; });
            logits += wanted * m.config().n_vocab;
            kv.finish(count);
            state.finish();
        }
    });
}
