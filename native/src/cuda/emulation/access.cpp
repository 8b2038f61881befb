#include "access.h"

#include <atomic>
#include <iterator>

#include "base/error.h"
#include "block.h"
#include "device.h"

// The image of this library, from the linker.
extern "C" const char __ehdr_start __attribute__((visibility("hidden")));
extern "C" const char _end __attribute__((visibility("hidden")));

namespace moepic::simt {
namespace {

thread_local Reach* t_reach = nullptr;
std::atomic<uint64_t> g_generation{1};

bool may_touch(Reach& reach, uintptr_t at, size_t bytes, bool writes) {
    if (reach.stack.holds(at, bytes) || reach.shared.holds(at, bytes)) return true;
    if (const uint64_t now = g_generation.load(std::memory_order_relaxed); reach.generation != now) {
        for (Range& range : reach.recent) range = {};
        reach.generation = now;
    }
    for (const Range& range : reach.recent)
        if (range.holds(at, bytes)) return true;
    const uintptr_t image = reinterpret_cast<uintptr_t>(&__ehdr_start);
    const Range constants{image, reinterpret_cast<uintptr_t>(&_end) - image};
    if (!writes && (reach.params.holds(at, bytes) || constants.holds(at, bytes))) return true;
    const Range found = Device::get().find(at);
    if (!found.holds(at, bytes)) return false;
    reach.recent[reach.oldest] = found;
    reach.oldest = (reach.oldest + 1) % static_cast<int>(std::size(reach.recent));
    return true;
}

void check(const void* address, size_t bytes, bool writes, const void* where) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    Reach* reach = t_reach;
    if (reach == nullptr || may_touch(*reach, at, bytes, writes)) return;
    std::string why = Device::get().why_outside(address, bytes);
    if (const size_t offset = at - reach->shared.begin; reach->shared.bytes > 0 && offset < 2 * reach->shared.bytes)
        why = cat("ends ", offset + bytes - reach->shared.bytes, " bytes beyond the block's ", reach->shared.bytes,
                  " bytes of shared memory");
    const uintptr_t code = reinterpret_cast<uintptr_t>(where) - 1 - reinterpret_cast<uintptr_t>(&__ehdr_start);
    fail_thread(cat("a kernel ", writes ? "writes " : "reads ", bytes, " bytes in a place that ", why, " (addr2line -e of this library, 0x",
                    std::hex, code, ", says which line)"));
}

}  // namespace

void set_reach(Reach* reach) {
    t_reach = reach;
}

void forget_allocations() {
    g_generation.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace moepic::simt

// Called by compiled kernels, with the address; N has the size too. Declared as gcc knows them, or -fsanitize=address refuses them.
extern "C" {
using moepic::simt::check;
void __asan_load1_noabort(void* at) {
    check(at, 1, false, __builtin_return_address(0));
}
void __asan_load2_noabort(void* at) {
    check(at, 2, false, __builtin_return_address(0));
}
void __asan_load4_noabort(void* at) {
    check(at, 4, false, __builtin_return_address(0));
}
void __asan_load8_noabort(void* at) {
    check(at, 8, false, __builtin_return_address(0));
}
void __asan_load16_noabort(void* at) {
    check(at, 16, false, __builtin_return_address(0));
}
void __asan_loadN_noabort(void* at, long bytes) {
    check(at, static_cast<size_t>(bytes), false, __builtin_return_address(0));
}
void __asan_store1_noabort(void* at) {
    check(at, 1, true, __builtin_return_address(0));
}
void __asan_store2_noabort(void* at) {
    check(at, 2, true, __builtin_return_address(0));
}
void __asan_store4_noabort(void* at) {
    check(at, 4, true, __builtin_return_address(0));
}
void __asan_store8_noabort(void* at) {
    check(at, 8, true, __builtin_return_address(0));
}
void __asan_store16_noabort(void* at) {
    check(at, 16, true, __builtin_return_address(0));
}
void __asan_storeN_noabort(void* at, long bytes) {
    check(at, static_cast<size_t>(bytes), true, __builtin_return_address(0));
}
void __asan_handle_no_return() {}  // said before a call that does not return; there is nothing to tidy
}
