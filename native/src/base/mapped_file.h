// A whole file, mapped read-only, and the descriptor behind it. Knows nothing of what the bytes mean.
//
// The mapped bytes are the page cache's: nothing is read until touched, and clean pages cost no memory that the kernel can't take back.
// A file that another process shortens while it is mapped kills the reader with SIGBUS when a lost page is touched. No reader of
// mappings can check that away, so what is large is read by calls; replace files by renaming a new one over them, never by rewriting in
// place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace moepic {

class MappedFile {
public:
    MappedFile() = default;
    // Throws Error(io) that names the path and the reason: missing, no permission, a directory or device, or not mappable.
    // An empty file gives an empty span.
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept { swap(other); }
    MappedFile& operator=(MappedFile&& other) noexcept {
        swap(other);
        return *this;
    }

    std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }

    // Fills `to` with the bytes from `offset` on, by system calls: any thread. Returns how many there were, fewer only where the file ends;
    // Error(io) with the system's reason.
    size_t read(uint64_t offset, std::span<std::byte> to) const;

private:
    void swap(MappedFile& other) noexcept {
        std::swap(fd_, other.fd_);
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }
    int fd_ = -1;
    const std::byte* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace moepic
