// A stack of its own and the place where it stopped: the threads of a block are fibers that take turns on one thread of the system.
// Tells the sanitizers of every switch. x86-64 and aarch64.
#pragma once

#include <cstddef>

#include "access.h"

namespace moepic::simt {

class Fiber {
public:
    using Body = void (*)(void* argument);

    Fiber();               // the running thread itself, as a place to come back to
    explicit Fiber(Body);  // with a stack; throws std::bad_alloc
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // Makes the next switch begin at body(argument), which must leave by leave_to(). What stood on the stack is forgotten: nothing is
    // destroyed, so a body that may be abandoned owns nothing.
    void restart(void* argument);
    Range stack() const { return {reinterpret_cast<uintptr_t>(bottom_), size_}; }
    void switch_to(Fiber& next);
    [[noreturn]] void leave_to(Fiber& next);  // for good, until restart()

private:
    static void enter();
    void announce(Fiber& next, bool leaves);
    static void arrive(Fiber& self);

    Body body_ = nullptr;
    void* argument_ = nullptr;
    void* stopped_ = nullptr;  // stack pointer where it stopped
    std::byte* map_ = nullptr;
    const void* bottom_ = nullptr;  // of the stack, for AddressSanitizer
    size_t size_ = 0;
    void* fake_stack_ = nullptr;  // AddressSanitizer's
    void* tsan_ = nullptr;        // ThreadSanitizer's name for it
    bool unfinished_ = false;
};

}  // namespace moepic::simt
