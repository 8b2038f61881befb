// The little of io_uring that a file lane needs, over raw system calls: queue reads, hand them in, take results. One thread at a time.
// Layout and orders of memory are those of io_uring(7): the kernel writes the submission head and the completion tail, we write the others;
// each side publishes with release what the other reads with acquire.
#pragma once

#include <cstddef>
#include <cstdint>

struct io_uring_cqe;
struct io_uring_sqe;

namespace moepic::transfer {

class Uring {
public:
    // Room for n_entries calls under way. Error(io) says what the kernel refused: no io_uring, forbidden (sysctl, seccomp), or too old.
    explicit Uring(unsigned n_entries);
    // The caller has taken the results of every read; one that is still under way would write to its buffer.
    ~Uring();
    Uring(const Uring&) = delete;
    Uring& operator=(const Uring&) = delete;

    // Queued until submit_and_wait(). `tag` comes back with the result. At most n_entries may be queued or under way.
    void read(int fd, void* to, uint32_t bytes, uint64_t offset, uint64_t tag);
    void poll_readable(int fd, uint64_t tag);
    // Returns with a result to take. Error(io) when the kernel refuses for good; calls under way are then lost.
    void submit_and_wait();
    struct Result {
        uint64_t tag = 0;
        int32_t value = 0;  // bytes, or -errno
    };
    bool take(Result& result);

private:
    io_uring_sqe& next_entry();
    bool has_result() const;
    void map(size_t ring_bytes, size_t entries_bytes);
    void unmap() noexcept;

    int fd_ = -1;
    std::byte* ring_ = nullptr;  // both rings: IORING_FEAT_SINGLE_MMAP
    size_t ring_bytes_ = 0;
    io_uring_sqe* entries_ = nullptr;
    size_t entries_bytes_ = 0;
    unsigned entries_mask_ = 0, results_mask_ = 0;
    unsigned *submit_tail_ = nullptr, *result_head_ = nullptr, *result_tail_ = nullptr, *order_ = nullptr;
    io_uring_cqe* results_ = nullptr;
    unsigned n_queued_ = 0;  // entries the kernel has not been told of
};

}  // namespace moepic::transfer
