#include "base/region.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "base/error.h"

namespace moepic {
namespace {

constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE of Linux 5.14, which older headers lack

}  // namespace

void populate(const std::byte* begin, size_t bytes) noexcept {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / page * page;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes + page - 1) / page * page;
    madvise(reinterpret_cast<void*>(first), last - first,
            kPopulateWrite);  // a hint: an older kernel brings the pages when they are written
}

Region::Region(size_t bytes, const char* what) {
    if (bytes == 0) return;
    if (bytes > SIZE_MAX / 2) fail(Code::no_memory, what, ": ", bytes, " bytes is more than an address space");
    const size_t wanted = bytes >= kHugePage ? bytes + kHugePage : bytes;
    void* map = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        fail(Code::no_memory, what, ": could not reserve ", human_bytes(bytes), ": ", std::strerror(errno),
             " (close other programs, or choose a smaller context or model)");
    }
    map_ = map;
    map_size_ = wanted;
    uintptr_t start = reinterpret_cast<uintptr_t>(map);
    if (wanted != bytes) {
        start = (start + kHugePage - 1) / kHugePage * kHugePage;
        madvise(reinterpret_cast<void*>(start), bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // a hint; refusal costs only speed
    }
    data_ = reinterpret_cast<std::byte*>(start);
    size_ = bytes;
}

Region::~Region() {
    if (map_) munmap(map_, map_size_);
}

}  // namespace moepic
