// A whole file, mapped read-only. Knows nothing of what the bytes mean.
//
// The bytes are the page cache's: nothing is read until touched, and clean pages cost no memory that the kernel can't take back.
// A file that another process shortens while it is mapped kills the reader with SIGBUS when a lost page is touched. No reader of
// mappings can check that away; replace files by renaming a new one over them, never by rewriting in place.
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

    // Hints over [offset, offset + size), clipped to the file; failures are ignored because only speed is at stake.
    void will_need(uint64_t offset, uint64_t size) const noexcept;  // start reading ahead; rounds out to whole pages
    // Gives the pages back from this process; they stay in the page cache, so the next start is fast and other readers keep
    // theirs. Rounds in to whole pages, so that a neighbour's bytes stay.
    void dont_need(uint64_t offset, uint64_t size) const noexcept;

private:
    void swap(MappedFile& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }
    const std::byte* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace moepic
