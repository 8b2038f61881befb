// Anonymous memory for weights, KV and scratch: one mapping, 2 MiB aligned, with huge pages where they are to be had.
// Pages cost nothing until touched.
#pragma once

#include <cstddef>
#include <utility>

namespace moepic {

inline constexpr size_t kHugePage = size_t{2} << 20;

class Region {
public:
    Region() = default;
    // Throws Error(no_memory) that names `what` and the size. Zero bytes gives an empty region. Memory reads as zero.
    Region(size_t bytes, const char* what);
    ~Region();
    Region(Region&& other) noexcept { swap(other); }
    Region& operator=(Region&& other) noexcept {
        swap(other);
        return *this;
    }
    std::byte* data() const noexcept { return data_; }
    size_t size() const noexcept { return size_; }

private:
    void swap(Region& other) noexcept {
        std::swap(map_, other.map_);
        std::swap(map_size_, other.map_size_);
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }
    void* map_ = nullptr;
    size_t map_size_ = 0;
    std::byte* data_ = nullptr;
    size_t size_ = 0;
};

// Has the kernel find the pages of [begin, begin + bytes), of a region, now; what they hold stays. Two threads that write to a fresh huge
// page at once have it cleared twice, so who shares a region among threads gives each pages of its own to clear first.
void populate(const std::byte* begin, size_t bytes) noexcept;

// Hands out consecutive 64-byte aligned parts; first run it without memory to learn the total.
class Carver {
public:
    explicit Carver(std::byte* base = nullptr) : base_(base) {}
    template <class T>
    T* take(size_t count) {
        const size_t at = used_;
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
    }
    size_t used() const noexcept { return used_; }

private:
    std::byte* base_;
    size_t used_ = 0;
};

}  // namespace moepic
