// A file that a lane reads: opened past the page cache where the file system allows it, and reads of it from start to end, whatever short
// or interrupted calls lie between. Knows neither queues nor frames, nor who makes the system calls.
#pragma once

#include <memory>
#include <string>

#include "transfer/ledger.h"

namespace moepic::transfer {

// Offsets, lengths and addresses of all reads are multiples of this: what O_DIRECT wants on every block device of today, and whole pages
// for POSIX_FADV_DONTNEED.
constexpr uint64_t kAlignment = 4096;

class SourceFile {
public:
    enum class Pages {
        none,     // O_DIRECT: the page cache has no part in it
        dropped,  // through the page cache, given back after every read
        kept      // through the page cache, on request
    };

    // Opens `path`, which must be a regular file: Error(io). When the file system refuses O_DIRECT: a warning, or Error(io) when strict.
    SourceFile(std::string path, bool direct, bool strict);
    ~SourceFile();
    SourceFile(SourceFile&& other) noexcept;
    SourceFile& operator=(SourceFile&&) = delete;

    const std::string& path() const noexcept { return path_; }
    int fd() const noexcept { return fd_; }
    Pages pages() const noexcept { return pages_; }
    // After a read of [offset, offset + bytes), whole pages.
    void give_pages_back(uint64_t offset, uint64_t bytes) const noexcept;

private:
    std::string path_;
    int fd_ = -1;
    Pages pages_ = Pages::kept;
};

// A step under way: which call comes next, and what its result means.
class Read {
public:
    Read() = default;
    Read(const SourceFile& file, const Claim& claim) : file_(&file), claim_(claim) {}

    // The next call: pread(fd(), to(), bytes(), offset()).
    int fd() const noexcept { return file_->fd(); }
    std::byte* to() const noexcept { return claim_.to + begin_; }
    uint64_t bytes() const noexcept { return claim_.step.bytes - begin_; }
    uint64_t offset() const noexcept { return claim_.step.offset + begin_; }

    // Takes its result: bytes, or -errno. True: the step has ended, with error() or without.
    bool advance(int64_t result);

    const Claim& claim() const noexcept { return claim_; }
    uint64_t moved_bytes() const noexcept { return end_; }
    const std::shared_ptr<const Error>& error() const noexcept { return error_; }

private:
    const SourceFile* file_ = nullptr;
    Claim claim_;
    uint64_t begin_ = 0;  // of the next call, aligned; bytes before it are there
    uint64_t end_ = 0;    // bytes before it are there, too
    int n_retries_ = 0;
    std::shared_ptr<const Error> error_;
};

}  // namespace moepic::transfer
