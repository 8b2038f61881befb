#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace moepic {
namespace {

const char* kind_of(mode_t mode) {
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a pipe";
    if (S_ISSOCK(mode)) return "a socket";
    return "a device";
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
    if (path.find('\0') != std::string::npos) fail(Code::io, "'", path.c_str(), "...': a path can't hold a NUL byte");
    MappedFile file;  // closes what is open when something below fails
    // O_NONBLOCK so that a pipe without a writer is refused below instead of blocking here; it means nothing for a file.
    file.fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file.fd_ < 0) fail(Code::io, "'", path, "' can't be opened: ", std::strerror(errno));
    struct stat info{};
    if (fstat(file.fd_, &info) != 0) fail(Code::io, "'", path, "' can't be examined: ", std::strerror(errno));
    if (!S_ISREG(info.st_mode)) fail(Code::io, "'", path, "' can't be mapped: expected a file, found ", kind_of(info.st_mode));
    if (info.st_size > 0) {
        const auto size = static_cast<size_t>(info.st_size);
        void* map = mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd_, 0);
        if (map == MAP_FAILED) fail(Code::io, "'", path, "' (", human_bytes(size), ") can't be mapped: ", std::strerror(errno));
        file.data_ = static_cast<const std::byte*>(map);
        file.size_ = size;
    }
    swap(file);
}

MappedFile::~MappedFile() {
    if (data_) munmap(const_cast<std::byte*>(data_), size_);
    if (fd_ >= 0) close(fd_);
}

size_t MappedFile::read(uint64_t offset, std::span<std::byte> to) const {
    size_t done = 0;
    while (done < to.size()) {
        const ssize_t n = pread(fd_, to.data() + done, to.size() - done, static_cast<off_t>(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) fail(Code::io, "can't be read at byte ", offset + done, ": ", std::strerror(errno));
        if (n == 0) break;
        done += static_cast<size_t>(n);
    }
    return done;
}

}  // namespace moepic
