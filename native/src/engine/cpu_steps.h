// Steps on the threads of a context: each is one job of the pool, or none where there is too little to share.
#pragma once

#include "engine/steps.h"
#include "engine/workspace.h"

namespace moepic {

class CpuSteps final : public Steps {
public:
    CpuSteps(const Model& model, Workspace& workspace) : Steps(model.weights()), workspace_(workspace) {}

    Memory reserve(size_t bytes, const char* what) override;
    void reserve_transfers(size_t, int64_t) override {}
    bool is_host() const noexcept override { return true; }
    void begin() override {}
    void send() override {}
    const float* read(const float* from, int64_t) override { return from; }

    using Steps::matmul;
    void clear(float* x, int64_t n) override;
    void norm(const device::NormJob& job) override;
    void quantize(ActMask mask, const float* x, int64_t cols, int64_t n, const Acts& acts) override;
    void matmul(const device::MatmulList& list) override { workspace_.matmul(list); }
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
    void* stage_bytes(void* to, size_t, size_t) override { return to; }

private:
    // row(r) for n rows of some `cols` floats.
    template <class Row>
    void each_row(int64_t n, int64_t cols, Row row);
    // part(at, count) over n floats.
    template <class Part>
    void each_part(int64_t n, Part part);

    Workspace& workspace_;
};

}  // namespace moepic
