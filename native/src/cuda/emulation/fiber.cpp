#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "sanitizers.h"

// Saves what a call must keep and the stack pointer, and goes on where another stack stopped.
extern "C" void moepic_simt_switch(void** stopped, void* next) __asm__("moepic_simt_switch") __attribute__((visibility("hidden")));
#if defined(__x86_64__)
__asm__(R"(
.text
.hidden moepic_simt_switch
.type moepic_simt_switch, @function
moepic_simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size moepic_simt_switch, . - moepic_simt_switch
)");
#elif defined(__aarch64__)
__asm__(R"(
.text
.hidden moepic_simt_switch
.type moepic_simt_switch, %function
moepic_simt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size moepic_simt_switch, . - moepic_simt_switch
)");
#else
#error "the SIMT emulation switches stacks on x86-64 and aarch64 only; build with -DMOEPIC_SIMT=OFF"
#endif

namespace moepic::simt {
namespace {

// Frames of instrumented code are several times as large.
constexpr size_t kStackBytes = kSanitized ? size_t{256} << 10 : size_t{64} << 10;

size_t page_bytes() {
    static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

// Who runs on this thread now; enter() has no other way to know.
thread_local Fiber* t_running = nullptr;

}  // namespace

Fiber::Fiber() {
#if MOEPIC_TSAN
    tsan_ = __tsan_get_current_fiber();
#endif
#if MOEPIC_ASAN
    pthread_attr_t attributes;
    void* bottom = nullptr;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &bottom, &size_);
        pthread_attr_destroy(&attributes);
    }
    bottom_ = bottom;
#endif
}

// Below the stack lies a page that nobody may touch, so that an overflow is a fault and not a neighbour's data.
Fiber::Fiber(Body body) : body_(body), size_(kStackBytes) {
    void* map = mmap(nullptr, size_ + page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<std::byte*>(map);
    bottom_ = map_ + page_bytes();
    mprotect(map_, page_bytes(), PROT_NONE);
}

Fiber::~Fiber() {
    if (map_ == nullptr) return;
#if MOEPIC_TSAN
    if (tsan_ != nullptr) __tsan_destroy_fiber(tsan_);
#endif
#if MOEPIC_ASAN
    // Frames that were left and never returned from stay poisoned, and the next map here may be a model's file.
    __asan_unpoison_memory_region(bottom_, size_);
#endif
    munmap(map_, size_ + page_bytes());
}

void Fiber::restart(void* argument) {
    argument_ = argument;
#if MOEPIC_TSAN
    // One that was abandoned has calls open in the sanitizer's books.
    if (tsan_ != nullptr && unfinished_) {
        __tsan_destroy_fiber(tsan_);
        tsan_ = nullptr;
    }
    if (tsan_ == nullptr) tsan_ = __tsan_create_fiber(0);
#endif
#if MOEPIC_ASAN
    if (unfinished_) __asan_unpoison_memory_region(bottom_, size_);
    fake_stack_ = nullptr;
#endif
    unfinished_ = true;
    // The frame that moepic_simt_switch takes down: zeroed registers, then where to go, which finds the stack as after a call.
    void** top = reinterpret_cast<void**>(map_ + page_bytes() + size_);
#if defined(__x86_64__)
    constexpr int kFrame = 8, kGo = 6;  // 6 registers, the address, and a return address of 0 for whoever unwinds
#else
    constexpr int kFrame = 20, kGo = 11;  // x30
#endif
    void** frame = top - kFrame;
    for (int i = 0; i < kFrame; ++i) frame[i] = nullptr;
    frame[kGo] = reinterpret_cast<void*>(&Fiber::enter);
    stopped_ = frame;
}

void Fiber::announce(Fiber& next, bool leaves) {
    t_running = &next;
#if MOEPIC_ASAN
    __sanitizer_start_switch_fiber(leaves ? nullptr : &fake_stack_, next.bottom_, next.size_);
#endif
#if MOEPIC_TSAN
    __tsan_switch_to_fiber(next.tsan_, kTsanNoSync);
#endif
}

void Fiber::arrive(Fiber& self) {
#if MOEPIC_ASAN
    __sanitizer_finish_switch_fiber(self.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::switch_to(Fiber& next) {
    announce(next, false);
    moepic_simt_switch(&stopped_, next.stopped_);
    arrive(*this);
}

void Fiber::leave_to(Fiber& next) {
    unfinished_ = false;
    announce(next, true);
    moepic_simt_switch(&stopped_, next.stopped_);
    __builtin_unreachable();
}

void Fiber::enter() {
    Fiber& self = *t_running;
    arrive(self);
    self.body_(self.argument_);
    __builtin_trap();  // a body leaves by leave_to()
}

}  // namespace moepic::simt
