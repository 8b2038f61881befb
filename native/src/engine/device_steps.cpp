#include "engine/device_steps.h"

#include <cassert>

namespace moepic {

DeviceSteps::DeviceSteps(const DeviceModel& device) : Steps(device.weights()), device_(device), library_(device.library()) {
    library_.open(device_.info().index);
    stream_ = device::OwnedStream(library_);
    sent_ = device::OwnedEvent(library_);
}

Memory DeviceSteps::reserve(size_t bytes, const char* what) {
    auto memory = std::make_shared<device::DeviceMemory>(device_.allocate(bytes, what));
    std::byte* data = memory->data();
    if (bytes) stream_.clear(data, bytes);
    return {std::move(memory), data, bytes};
}

void DeviceSteps::reserve_transfers(size_t staged, int64_t read) {
    staged_ = device::allocate_host(library_, staged, "what a pass brings in");
    read_ = device::allocate_host(library_, static_cast<size_t>(read) * sizeof(float), "what a pass gives back");
}

void DeviceSteps::begin() {
    library_.use(device_.info().index);  // the caller's thread may be a new one each time
    transfers_.clear();                  // of a pass that ended between stage() and send()
    n_staged_ = 0;
}

void* DeviceSteps::stage_bytes(void* to, size_t room, size_t bytes) {
    if (transfers_.empty()) sent_.wait_host();
    std::byte* const from = staged_.data() + n_staged_;
    n_staged_ += room;
    assert(n_staged_ <= staged_.size());
    transfers_.push_back({to, from, bytes});
    return from;
}

void DeviceSteps::send() {
    for (const Transfer& t : transfers_) {
        if (t.bytes) stream_.copy(t.to, t.from, t.bytes);
    }
    stream_.record(sent_);
    transfers_.clear();
    n_staged_ = 0;
}

const float* DeviceSteps::read(const float* from, int64_t n) {
    assert(static_cast<size_t>(n) * sizeof(float) <= read_.size());
    stream_.copy(read_.data(), from, static_cast<size_t>(n) * sizeof(float));
    stream_.synchronize();
    return read_.as<float>();
}

void DeviceSteps::clear(float* x, int64_t n) {
    stream_.clear(x, static_cast<size_t>(n) * sizeof(float));
}

void DeviceSteps::norm(const device::NormJob& job) {
    library_.check(library_->norm(job, stream_.get()), "a norm");
}

void DeviceSteps::quantize(ActMask mask, const float* x, int64_t cols, int64_t n, const Acts& acts) {
    library_.check(library_->quantize(mask, x, cols, cols, n, acts, stream_.get()), "quantizing activations");
}

void DeviceSteps::matmul(const device::MatmulList& list) {
    library_.check(library_->matmul(list, stream_.get()), "a matrix product");
}

void DeviceSteps::heads(const device::HeadsJob& job) {
    library_.check(library_->heads(job, stream_.get()), "making heads");
}

void DeviceSteps::latent_heads(const device::LatentHeadsJob& job) {
    library_.check(library_->latent_heads(job, stream_.get()), "making latent heads");
}

void DeviceSteps::kv_store(const device::KvStoreJob& job) {
    library_.check(library_->kv_store(job, stream_.get()), "storing keys and values");
}

size_t DeviceSteps::attention_scratch(const ops::KvView& kv, int64_t n, int64_t n_head) const {
    return library_->attention_scratch(kv, n, n_head);
}

void DeviceSteps::attention(const device::AttentionJob& job) {
    library_.check(library_->attention(job, stream_.get()), "attention");
}

void DeviceSteps::glu(const device::GluJob& job) {
    library_.check(library_->glu(job, stream_.get()), "a gated activation");
}

void DeviceSteps::scale(float* y, float a, int64_t n) {
    library_.check(library_->scale(y, a, n, stream_.get()), "scaling");
}

void DeviceSteps::scale_add(float* y, float a, const float* x, int64_t n) {
    library_.check(library_->scale_add(y, a, x, n, stream_.get()), "adding to the residual");
}

void DeviceSteps::add(float* y, const float* x, int64_t n) {
    library_.check(library_->add(y, x, n, stream_.get()), "adding");
}

void DeviceSteps::multiply(float* y, const float* x, int64_t n) {
    library_.check(library_->multiply(y, x, n, stream_.get()), "multiplying");
}

void DeviceSteps::conv(const device::ConvJob& job) {
    library_.check(library_->conv(job, stream_.get()), "a convolution");
}

void DeviceSteps::delta_gates(const device::DeltaGatesJob& job) {
    library_.check(library_->delta_gates(job, stream_.get()), "gates of a delta net");
}

void DeviceSteps::delta_rule(const device::DeltaRuleJob& job) {
    library_.check(library_->delta_rule(job, stream_.get()), "a delta rule");
}

}  // namespace moepic
