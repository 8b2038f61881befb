#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace moepic {
namespace {

struct Descriptor {
    int fd;
    ~Descriptor() {
        if (fd >= 0) close(fd);
    }
};

const char* kind_of(mode_t mode) {
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a pipe";
    if (S_ISSOCK(mode)) return "a socket";
    return "a device";
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
    if (path.find('\0') != std::string::npos) fail(Code::io, "'", path.c_str(), "...': a path can't hold a NUL byte");
    // O_NONBLOCK so that a pipe without a writer is refused below instead of blocking here; it means nothing for a file.
    const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.fd < 0) fail(Code::io, "'", path, "' can't be opened: ", std::strerror(errno));
    struct stat info{};
    if (fstat(file.fd, &info) != 0) fail(Code::io, "'", path, "' can't be examined: ", std::strerror(errno));
    if (!S_ISREG(info.st_mode)) fail(Code::io, "'", path, "' can't be mapped: expected a file, found ", kind_of(info.st_mode));
    if (info.st_size <= 0) return;
    const auto size = static_cast<size_t>(info.st_size);
    void* map = mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd, 0);
    if (map == MAP_FAILED) fail(Code::io, "'", path, "' (", human_bytes(size), ") can't be mapped: ", std::strerror(errno));
    data_ = static_cast<const std::byte*>(map);
    size_ = size;
}

MappedFile::~MappedFile() {
    if (data_) munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::will_need(uint64_t offset, uint64_t size) const noexcept {
    if (offset >= size_) return;
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const uint64_t end = offset + std::min<uint64_t>(size, size_ - offset);
    const uint64_t begin = offset / page * page;
    madvise(const_cast<std::byte*>(data_ + begin), end - begin, MADV_WILLNEED);
}

void MappedFile::dont_need(uint64_t offset, uint64_t size) const noexcept {
    if (offset >= size_) return;
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const uint64_t end = (offset + std::min<uint64_t>(size, size_ - offset)) / page * page;
    const uint64_t begin = (offset + page - 1) / page * page;
    if (begin < end) madvise(const_cast<std::byte*>(data_ + begin), end - begin, MADV_DONTNEED);
}

}  // namespace moepic
