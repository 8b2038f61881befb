#include "transfer/uring.h"

#include <linux/io_uring.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace moepic::transfer {
namespace {

template <class T>
T* at(std::byte* base, uint32_t offset) {
    return reinterpret_cast<T*>(base + offset);
}

// Kernels say which operations they run since 5.6, the first that has IORING_OP_READ.
bool knows(int fd, std::initializer_list<unsigned> operations) {
    constexpr unsigned kMost = 64;
    alignas(io_uring_probe) std::byte memory[sizeof(io_uring_probe) + kMost * sizeof(io_uring_probe_op)] = {};
    if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_PROBE, memory, kMost) != 0) return false;
    const auto* const probe = reinterpret_cast<const io_uring_probe*>(memory);
    return std::all_of(operations.begin(), operations.end(), [&](unsigned operation) {
        return operation <= probe->last_op && (probe->ops[operation].flags & IO_URING_OP_SUPPORTED);
    });
}

}  // namespace

Uring::Uring(unsigned n_entries) {
    io_uring_params params{};
    fd_ = static_cast<int>(syscall(SYS_io_uring_setup, n_entries, &params));
    if (fd_ < 0) fail(Code::io, "io_uring: the kernel refuses it: ", std::strerror(errno));
    try {
        if (!(params.features & IORING_FEAT_SINGLE_MMAP) || !knows(fd_, {IORING_OP_READ, IORING_OP_POLL_ADD})) {
            fail(Code::io, "io_uring: this kernel has no IORING_OP_READ (Linux 5.6 or newer has)");
        }
        map(std::max<size_t>(params.sq_off.array + params.sq_entries * sizeof(unsigned),
                             params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe)),
            params.sq_entries * sizeof(io_uring_sqe));
    } catch (...) {
        unmap();
        throw;
    }
    submit_tail_ = at<unsigned>(ring_, params.sq_off.tail);
    entries_mask_ = *at<unsigned>(ring_, params.sq_off.ring_mask);
    order_ = at<unsigned>(ring_, params.sq_off.array);
    result_head_ = at<unsigned>(ring_, params.cq_off.head);
    result_tail_ = at<unsigned>(ring_, params.cq_off.tail);
    results_mask_ = *at<unsigned>(ring_, params.cq_off.ring_mask);
    results_ = at<io_uring_cqe>(ring_, params.cq_off.cqes);
}

Uring::~Uring() {
    unmap();
}

void Uring::map(size_t ring_bytes, size_t entries_bytes) {
    const auto map_at = [&](size_t bytes, off_t offset) {
        void* const map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, offset);
        if (map == MAP_FAILED) fail(Code::io, "io_uring: its rings can't be mapped: ", std::strerror(errno));
        return map;
    };
    ring_ = static_cast<std::byte*>(map_at(ring_bytes, IORING_OFF_SQ_RING));
    ring_bytes_ = ring_bytes;
    entries_ = static_cast<io_uring_sqe*>(map_at(entries_bytes, IORING_OFF_SQES));
    entries_bytes_ = entries_bytes;
}

void Uring::unmap() noexcept {
    if (entries_) munmap(entries_, entries_bytes_);
    if (ring_) munmap(ring_, ring_bytes_);
    close(fd_);
}

io_uring_sqe& Uring::next_entry() {
    // Only we write the tail; entries of a ring without SQPOLL are consumed inside io_uring_enter, so there is room again after it.
    const unsigned tail = *submit_tail_;
    const unsigned index = tail & entries_mask_;
    order_[index] = index;
    io_uring_sqe& entry = entries_[index];
    std::memset(&entry, 0, sizeof entry);
    std::atomic_ref(*submit_tail_).store(tail + 1, std::memory_order_release);
    ++n_queued_;
    return entry;
}

void Uring::read(int fd, void* to, uint32_t bytes, uint64_t offset, uint64_t tag) {
    io_uring_sqe& entry = next_entry();
    entry.opcode = IORING_OP_READ;
    entry.fd = fd;
    entry.addr = reinterpret_cast<uintptr_t>(to);
    entry.len = bytes;
    entry.off = offset;
    entry.user_data = tag;
}

void Uring::poll_readable(int fd, uint64_t tag) {
    io_uring_sqe& entry = next_entry();
    entry.opcode = IORING_OP_POLL_ADD;
    entry.fd = fd;
    entry.poll_events = POLLIN;
    entry.user_data = tag;
}

bool Uring::has_result() const {
    return *result_head_ != std::atomic_ref(*result_tail_).load(std::memory_order_acquire);
}

void Uring::submit_and_wait() {
    while (n_queued_ > 0 || !has_result()) {
        const long n = syscall(SYS_io_uring_enter, fd_, n_queued_, 1u, IORING_ENTER_GETEVENTS, nullptr, size_t{0});
        if (n >= 0) {
            n_queued_ -= static_cast<unsigned>(n);
        } else if (errno == EAGAIN || errno == EBUSY) {
            if (has_result()) return;  // taking results is what makes room; the queued ones go with the next call
            usleep(100);
        } else if (errno != EINTR) {
            fail(Code::io, "io_uring: io_uring_enter failed: ", std::strerror(errno));
        }
    }
}

bool Uring::take(Result& result) {
    if (!has_result()) return false;
    const unsigned head = *result_head_;
    const io_uring_cqe& entry = results_[head & results_mask_];
    result = {entry.user_data, entry.res};
    std::atomic_ref(*result_head_).store(head + 1, std::memory_order_release);
    return true;
}

}  // namespace moepic::transfer
