#include "transfer/source_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"

namespace moepic::transfer {
namespace {

constexpr int kMostRetries = 1000;  // of one step, after EINTR or EAGAIN: the kernel is out of something, and asking for ever helps nobody

// Why O_DIRECT can't be had on an open file, or null when it is on.
const char* turn_direct_on(int fd) {
#ifdef STATX_DIOALIGN
    struct statx info{};
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 && (info.stx_mask & STATX_DIOALIGN)) {
        if (info.stx_dio_offset_align == 0) return "the file system has no direct reads of it";
        if (info.stx_dio_offset_align > kAlignment || info.stx_dio_mem_align > kAlignment)
            return "it wants more than 4096 bytes of alignment";
    }
#endif
    if (fcntl(fd, F_SETFL, O_DIRECT) != 0) return std::strerror(errno);
    // Some file systems take the flag and refuse the reads.
    alignas(kAlignment) std::byte block[kAlignment];
    if (pread(fd, block, sizeof block, 0) < 0 && errno == EINVAL) return "a direct read is refused";
    return nullptr;
}

}  // namespace

SourceFile::SourceFile(std::string path, bool direct, bool strict) : path_(std::move(path)) {
    // O_NONBLOCK so that a pipe without a writer is refused below instead of blocking here.
    fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd_ < 0) fail(Code::io, "file: '", path_, "' can't be opened: ", std::strerror(errno));
    try {
        struct stat info{};
        if (fstat(fd_, &info) != 0) fail(Code::io, "file: '", path_, "' can't be examined: ", std::strerror(errno));
        if (!S_ISREG(info.st_mode)) fail(Code::io, "file: '", path_, "' is not a regular file");
        const char* const refusal = direct ? turn_direct_on(fd_) : nullptr;
        if (direct && !refusal) {
            pages_ = Pages::none;
            return;
        }
        // Without O_NONBLOCK: io_uring would answer a read that has to wait with EAGAIN.
        if (fcntl(fd_, F_SETFL, 0) != 0) fail(Code::io, "file: '", path_, "': fcntl: ", std::strerror(errno));
        if (!direct) return;
        const std::string text = cat("file: '", path_, "': no O_DIRECT (", refusal, ")");
        if (strict) fail(Code::io, text, "; put the file on another file system, or allow the downgrade");
        log_message(LogLevel::warning, text + "; reading through the page cache and giving its pages back, which costs speed");
        pages_ = Pages::dropped;
        posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);  // no reading ahead: those pages would stay
    } catch (...) {
        close(fd_);
        throw;
    }
}

SourceFile::~SourceFile() {
    if (fd_ >= 0) close(fd_);
}

SourceFile::SourceFile(SourceFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), pages_(other.pages_) {}

void SourceFile::give_pages_back(uint64_t offset, uint64_t bytes) const noexcept {
    if (pages_ != Pages::dropped) return;
    posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
}

bool Read::advance(int64_t result) {
    const Step& step = claim_.step;
    if (result == -EINTR || result == -EAGAIN) {
        if (++n_retries_ <= kMostRetries) return false;
    }
    if (result < 0) {
        error_ =
            std::make_shared<const Error>(Code::io, cat("file: '", file_->path(), "': reading ", step.payload, " bytes at ",
                                                        step.offset + step.skip, " failed: ", std::strerror(static_cast<int>(-result))));
        return true;
    }
    const uint64_t before = end_;
    end_ = std::max(end_, begin_ + static_cast<uint64_t>(result));
    if (end_ >= step.skip + step.payload) {
        file_->give_pages_back(step.offset, step.bytes);
        return true;
    }
    // A short read ends at the end of the file or anywhere else; only a second one that brings nothing more tells. It starts at an aligned
    // place again, as O_DIRECT wants.
    begin_ = end_ / kAlignment * kAlignment;
    if (end_ > before) return false;
    struct stat info{};
    const bool knows_size = fstat(fd(), &info) == 0;
    error_ = std::make_shared<const Error>(
        Code::io, cat("file: '", file_->path(), "': asked for ", step.payload, " bytes at ", step.offset + step.skip, ", the file ends at ",
                      knows_size ? static_cast<uint64_t>(info.st_size) : step.offset + end_, " (truncated while in use?)"));
    return true;
}

}  // namespace moepic::transfer
