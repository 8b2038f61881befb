// Steps on a device: each is a call of the device's table (device/api.h) on one stream, so they run in the order they are given while the
// host goes on. Memory is the device's. What the host makes of a pass waits in pinned memory until its copies have run; what it wants back
// is copied there, and waited for.
#pragma once

#include <vector>

#include "device/buffer.h"
#include "engine/device_model.h"
#include "engine/steps.h"

namespace moepic {

class DeviceSteps final : public Steps {
public:
    // Throws Error(device). Outlives the memory it reserves.
    explicit DeviceSteps(const DeviceModel& device);

    // Where the steps run: what another stream brings for them is waited for here, and what they leave for it is recorded here.
    const device::OwnedStream& stream() const noexcept { return stream_; }

    Memory reserve(size_t bytes, const char* what) override;
    void reserve_transfers(size_t staged, int64_t read) override;
    bool is_host() const noexcept override { return false; }
    void begin() override;
    void send() override;
    const float* read(const float* from, int64_t n) override;

    using Steps::matmul;
    void clear(float* x, int64_t n) override;
    void norm(const device::NormJob& job) override;
    void quantize(ActMask mask, const float* x, int64_t cols, int64_t n, const Acts& acts) override;
    void matmul(const device::MatmulList& list) override;
    void heads(const device::HeadsJob& job) override;
    void latent_heads(const device::LatentHeadsJob& job) override;
    void kv_store(const device::KvStoreJob& job) override;
    size_t attention_scratch(const ops::KvView& kv, int64_t n, int64_t n_head) const override;
    void attention(const device::AttentionJob& job) override;
    void glu(const device::GluJob& job) override;
    void scale(float* y, float a, int64_t n) override;
    void scale_add(float* y, float a, const float* x, int64_t n) override;
    void add(float* y, const float* x, int64_t n) override;
    void multiply(float* y, const float* x, int64_t n) override;
    void conv(const device::ConvJob& job) override;
    void delta_gates(const device::DeltaGatesJob& job) override;
    void delta_rule(const device::DeltaRuleJob& job) override;

protected:
    void* stage_bytes(void* to, size_t room, size_t bytes) override;

private:
    struct Transfer {
        void* to;
        const void* from;
        size_t bytes;
    };

    const DeviceModel& device_;
    const device::Library& library_;
    device::OwnedStream stream_;
    device::OwnedEvent sent_;  // the copies of the last send() have run
    device::HostMemory staged_, read_;
    size_t n_staged_ = 0;              // bytes of staged_ taken since the last send()
    std::vector<Transfer> transfers_;  // since the last send()
};

}  // namespace moepic
