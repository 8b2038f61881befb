// The steps of a forward pass over a whole batch, and the memory they work in. The order of steps is written once (decoder.h, delta_net.h,
// short_conv.h); what runs them is behind this face: the threads of a context (cpu_steps.h), or a device. A step is one of the plain jobs
// of device/jobs.h, and whoever runs it gives the same bits.
//
// Memory of the steps may be a device's. So whoever gives them orders does arithmetic on pointers and never looks behind one: what the host
// makes goes in by stage() and send(), what it needs comes out by read(). The same holds for weights: layer(il) is what steps read. Where
// the host itself needs a weight it asks Model::layer, which is always the host's:
//   output_scale                             the decoder makes it the factor of scale()
//   embedding rows, divisors of rope         what is staged is made of them
//   router, selection_bias, expert_scale     guesses for later layers, and routing where the host does it
//
// Steps run in the order they are given. They may still be running when a call returns; read() waits. Used by one thread at a time.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <utility>

#include "device/jobs.h"
#include "engine/acts.h"
#include "engine/model.h"

namespace moepic {

// Memory that steps reach; reads as zero before it is written. Carve it (base/region.h), don't look into it.
class Memory {
public:
    Memory() = default;
    Memory(std::shared_ptr<const void> owner, std::byte* data, size_t size) : owner_(std::move(owner)), data_(data), size_(size) {}
    std::byte* data() const noexcept { return data_; }
    size_t size() const noexcept { return size_; }

private:
    std::shared_ptr<const void> owner_;
    std::byte* data_ = nullptr;
    size_t size_ = 0;
};

class Steps {
public:
    explicit Steps(const WeightsView& weights) : weights_(weights) {}
    virtual ~Steps() = default;
    Steps(const Steps&) = delete;
    Steps& operator=(const Steps&) = delete;

    const WeightsView& weights() const noexcept { return weights_; }
    const LayerWeights& layer(int64_t il) const noexcept { return weights_.layers[static_cast<size_t>(il)]; }

    // ---- memory
    // --------------------------------------------------------------------------------------------------------------------------

    // Throws no_memory, naming `what`. Zero bytes give empty memory.
    virtual Memory reserve(size_t bytes, const char* what) = 0;
    // Before the first pass: the most bytes that will be staged at once, each piece staged_bytes(), and the most floats read at once.
    virtual void reserve_transfers(size_t staged, int64_t read) = 0;
    template <class T>
    static constexpr size_t staged_bytes(int64_t n) noexcept {
        return (static_cast<size_t>(n) * sizeof(T) + 7) / 8 * 8;  // pieces lie side by side
    }
    // Memory of the steps is the host's, and results may be written wherever the host wants them.
    virtual bool is_host() const noexcept = 0;

    // A pass begins, on the calling thread.
    virtual void begin() = 0;
    // Where the host writes n values that the next send() brings to `to`; steps given after it see them.
    template <class T>
    T* stage(T* to, int64_t n) {
        return static_cast<T*>(stage_bytes(to, staged_bytes<T>(n), static_cast<size_t>(n) * sizeof(T)));
    }
    virtual void send() = 0;
    // n floats of the steps' memory, on the host, when all steps given before have run; until the next call.
    virtual const float* read(const float* from, int64_t n) = 0;

    // ---- steps
    // ---------------------------------------------------------------------------------------------------------------------------

    virtual void clear(float* x, int64_t n) = 0;
    virtual void norm(const device::NormJob& job) = 0;
    virtual void quantize(ActMask mask, const float* x, int64_t cols, int64_t n, const Acts& acts) = 0;  // rows side by side
    virtual void matmul(const device::MatmulList& list) = 0;
    virtual void heads(const device::HeadsJob& job) = 0;
    virtual void latent_heads(const device::LatentHeadsJob& job) = 0;
    virtual void kv_store(const device::KvStoreJob& job) = 0;
    virtual size_t attention_scratch(const ops::KvView& kv, int64_t n, int64_t n_head) const = 0;  // what the job wants; 0: its own
    virtual void attention(const device::AttentionJob& job) = 0;
    virtual void glu(const device::GluJob& job) = 0;
    virtual void scale(float* y, float a, int64_t n) = 0;                      // y *= a
    virtual void scale_add(float* y, float a, const float* x, int64_t n) = 0;  // y = fma(a, x, y)
    virtual void add(float* y, const float* x, int64_t n) = 0;                 // y += x
    virtual void multiply(float* y, const float* x, int64_t n) = 0;            // y *= x
    virtual void conv(const device::ConvJob& job) = 0;
    virtual void delta_gates(const device::DeltaGatesJob& job) = 0;
    virtual void delta_rule(const device::DeltaRuleJob& job) = 0;

    // Several matrices over the same n tokens, as one step; matrices a layer does not have (no rows) are passed over.
    void matmul(std::initializer_list<device::MatmulJob> jobs, int64_t n) {
        device::MatmulList list;
        for (const device::MatmulJob& job : jobs) {
            if (job.w.rows) list.jobs[list.n_jobs++] = job;
        }
        list.n_tokens = n;
        matmul(list);
    }

protected:
    // `bytes` to go to `to`, of a piece of `room`.
    virtual void* stage_bytes(void* to, size_t room, size_t bytes) = 0;

private:
    const WeightsView weights_;
};

}  // namespace moepic
