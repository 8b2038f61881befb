#include "block.h"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <sstream>
#include <vector>

#include "fiber.h"
#include "sanitizers.h"

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace moepic::simt {
namespace {

enum class Wait : uint8_t { no, barrier, collective, gone };
enum class Collective : uint8_t { sync, shuffle, ballot, multiply };
const char* const kCollectiveNames[] = {"__syncwarp", "a warp shuffle", "a warp vote", "mma_s8"};

struct Thread {
    std::unique_ptr<Fiber> fiber;
    uint3 index{};
    int number = 0;
    Wait wait = Wait::no;
    Where where;
    // Of a collective: what the lane brings, and what the last lane to come leaves for it.
    Collective kind{};
    uint32_t mask = 0;
    int source = 0;
    uint64_t value = 0;
    uint32_t a[4], b[2];
    int32_t d[4];
    char* token = nullptr;
};

std::string place(const Where& where) {
    const char* file = where.file_name();
    if (const char* slash = std::strrchr(file, '/')) file = slash + 1;
    std::ostringstream out;
    out << file << ':' << where.line();
    return std::move(out).str();
}

template <class... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return std::move(out).str();
}

std::string hex(uint32_t mask) {
    char out[16];
    std::snprintf(out, sizeof out, "0x%08x", mask);
    return out;
}

// Everything one thread of the system needs to run blocks, kept from block to block: fibers, and the block that runs.
class Processor {
public:
    std::string run(const Grid& grid, uint64_t index);

    void* shared() const { return shared_; }
    int lane() const { return current_->number % kWarp; }
    void barrier(Where where);
    // Waits until all lanes of the mask are here; what they bring is in the running thread before, what they get after.
    Thread& running() { return *current_; }
    void collect(Collective kind, uint32_t mask, Where where);
    [[noreturn]] void fail(const std::string& what);

private:
    static void body(void* processor) { static_cast<Processor*>(processor)->run_thread(); }
    void prepare(const Grid& grid, uint64_t index);
    void run_thread();
    void make_ready(Thread& thread);
    void resume(Thread& thread);
    Thread* take_ready();
    void wait(Wait what);
    void complete(Collective kind, uint32_t mask, Thread* warp);
    std::string describe_stall() const;

    Fiber home_;  // where run() waits while the block's threads run
    std::vector<Thread> threads_;
    size_t n_threads_ = 0;
    std::vector<Thread*> ready_;  // a ring: a thread is in it at most once
    size_t ready_first_ = 0, n_ready_ = 0;
    Thread* current_ = nullptr;
    const Grid* grid_ = nullptr;
    void* shared_ = nullptr;
    size_t n_at_barrier_ = 0, n_gone_ = 0;
    std::string failure_;
    // What ThreadSanitizer knows barriers by. Two take turns, or what a thread wrote after a barrier would seem given before it.
    char barrier_tokens_[2] = {};
    int barrier_turn_ = 0;
    char warp_tokens_[64] = {};
    int warp_turn_ = 0;
    char end_token_ = 0;
};

uint64_t next_random(uint64_t& state) {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void Processor::prepare(const Grid& grid, uint64_t index) {
    grid_ = &grid;
    n_threads_ = size_t{grid.block.x} * grid.block.y * grid.block.z;
    while (threads_.size() < n_threads_) {
        threads_.emplace_back();
        threads_.back().fiber = std::make_unique<Fiber>(&Processor::body);
    }
    ready_.resize(n_threads_);
    ready_first_ = n_ready_ = n_at_barrier_ = n_gone_ = 0;
    failure_.clear();

    blockDim = grid.block;
    gridDim = grid.grid;
    blockIdx = {static_cast<unsigned>(index % grid.grid.x), static_cast<unsigned>(index / grid.grid.x % grid.grid.y),
                static_cast<unsigned>(index / grid.grid.x / grid.grid.y)};
    for (size_t i = 0; i < n_threads_; ++i) {
        Thread& thread = threads_[i];
        thread.number = static_cast<int>(i);
        thread.index = {static_cast<unsigned>(i % grid.block.x), static_cast<unsigned>(i / grid.block.x % grid.block.y),
                        static_cast<unsigned>(i / grid.block.x / grid.block.y)};
        thread.wait = Wait::no;
        thread.fiber->restart(this);
        make_ready(thread);
    }
    uint64_t random = grid.seed + index;
    for (size_t i = n_threads_; i > 1; --i) std::swap(ready_[i - 1], ready_[next_random(random) % i]);
}

std::string Processor::run(const Grid& grid, uint64_t index) {
    prepare(grid, index);
    shared_ = nullptr;
    if (grid.shared_bytes > 0) {
        if (posix_memalign(&shared_, 128, grid.shared_bytes) != 0) throw std::bad_alloc();
        std::memset(shared_, 0xff, grid.shared_bytes);
    }
    give(const_cast<Grid*>(&grid));
    Thread& first = *take_ready();
    current_ = &first;
    threadIdx = first.index;
    home_.switch_to(*first.fiber);
    take(&end_token_);
    if (failure_.empty() && n_gone_ < n_threads_) failure_ = describe_stall();
    std::free(shared_);
    return failure_;
}

void Processor::run_thread() {
    take(const_cast<Grid*>(grid_));
    grid_->kernel();
    Thread& self = *current_;
    if (n_at_barrier_ > 0) {
        for (size_t i = 0; i < n_threads_; ++i)
            if (threads_[i].wait == Wait::barrier)
                fail(text("thread ", self.number, " left while thread ", i, " waits at __syncthreads (", place(threads_[i].where), ")"));
    }
    const int own_lane = self.number % kWarp;
    for (size_t i = self.number - own_lane; i < n_threads_ && i < static_cast<size_t>(self.number - own_lane + kWarp); ++i)
        if (threads_[i].wait == Wait::collective && (threads_[i].mask >> own_lane & 1) != 0)
            fail(text("thread ", self.number, " left while thread ", i, " waits for it in ",
                      kCollectiveNames[static_cast<int>(threads_[i].kind)], " (", place(threads_[i].where), "), mask ",
                      hex(threads_[i].mask)));
    self.wait = Wait::gone;
    ++n_gone_;
    give(&end_token_);
    Thread* next = take_ready();
    if (next == nullptr) self.fiber->leave_to(home_);
    current_ = next;
    threadIdx = next->index;
    self.fiber->leave_to(*next->fiber);
}

void Processor::make_ready(Thread& thread) {
    size_t at = ready_first_ + n_ready_++;
    if (at >= n_threads_) at -= n_threads_;
    ready_[at] = &thread;
}

Thread* Processor::take_ready() {
    if (n_ready_ == 0) return nullptr;
    Thread* thread = ready_[ready_first_];
    if (++ready_first_ == n_threads_) ready_first_ = 0;
    --n_ready_;
    return thread;
}

// Lets others run until somebody makes this thread ready again.
void Processor::wait(Wait what) {
    Thread& self = *current_;
    self.wait = what;
    Thread* next = take_ready();
    if (next == nullptr) {
        self.fiber->switch_to(home_);  // nobody can go on; not resumed
        __builtin_trap();
    }
    current_ = next;
    threadIdx = next->index;
    self.fiber->switch_to(*next->fiber);
}

void Processor::fail(const std::string& what) {
    failure_ = what;
    current_->fiber->switch_to(home_);  // the block is abandoned where it stands
    __builtin_trap();
}

void Processor::barrier(Where where) {
    Thread& self = *current_;
    self.where = where;
    if (n_gone_ > 0)
        fail(text("thread ", self.number, " reached __syncthreads (", place(where), ") after ", n_gone_, " threads of its block had left"));
    if (n_at_barrier_ > 0) {
        // One that waits stands for all: each was compared with another when it came.
        for (size_t i = 0; i < n_threads_; ++i) {
            const Thread& other = threads_[i];
            if (other.wait != Wait::barrier) continue;
            if (other.where.line() != where.line() || std::strcmp(other.where.file_name(), where.file_name()) != 0)
                fail(text("thread ", self.number, " is at __syncthreads (", place(where), "), thread ", i, " at another (",
                          place(other.where), ")"));
            break;
        }
    }
    char* token = &barrier_tokens_[barrier_turn_];
    give(token);
    if (++n_at_barrier_ < n_threads_) {
        wait(Wait::barrier);
    } else {
        n_at_barrier_ = 0;
        barrier_turn_ ^= 1;
        for (size_t i = 0; i < n_threads_; ++i) {
            if (threads_[i].wait != Wait::barrier) continue;
            threads_[i].wait = Wait::no;
            make_ready(threads_[i]);
        }
    }
    take(token);
}

void Processor::collect(Collective kind, uint32_t mask, Where where) {
    Thread& self = *current_;
    const int own_lane = self.number % kWarp;
    Thread* warp = &threads_[self.number - own_lane];
    const int n_lanes = static_cast<int>(std::min<size_t>(kWarp, n_threads_ - (self.number - own_lane)));
    const char* name = kCollectiveNames[static_cast<int>(kind)];
    if ((mask >> own_lane & 1) == 0)
        fail(text("lane ", own_lane, " calls ", name, " (", place(where), ") with mask ", hex(mask), ", which lacks it"));
    if (n_lanes < kWarp && mask >> n_lanes != 0)
        fail(text(name, " (", place(where), ") has mask ", hex(mask), ", but the warp has ", n_lanes, " lanes: the block has ", n_threads_,
                  " threads"));
    self.kind = kind;
    self.mask = mask;
    self.where = where;
    self.token = nullptr;
    uint32_t here = 1u << own_lane;
    for (int l = 0; l < n_lanes; ++l) {
        const Thread& other = warp[l];
        if (other.wait == Wait::gone && (mask >> l & 1) != 0)
            fail(text("lane ", own_lane, " calls ", name, " (", place(where), ") with mask ", hex(mask), ", but lane ", l, " has left"));
        if (other.wait != Wait::collective || (other.mask & mask) == 0) continue;
        if (other.kind != kind || other.mask != mask)
            fail(text("lane ", own_lane, " calls ", name, " (", place(where), ") with mask ", hex(mask), " while lane ", l, " waits in ",
                      kCollectiveNames[static_cast<int>(other.kind)], " (", place(other.where), ") with mask ", hex(other.mask)));
        here |= 1u << l;
        self.token = other.token;
    }
    if (self.token == nullptr) self.token = &warp_tokens_[warp_turn_++ % sizeof warp_tokens_];
    char* token = self.token;
    if (kind == Collective::sync) give(token);
    if (here != mask) {
        wait(Wait::collective);
    } else {
        complete(kind, mask, warp);
        for (int l = 0; l < n_lanes; ++l) {
            if (l == own_lane || (mask >> l & 1) == 0) continue;
            warp[l].wait = Wait::no;
            make_ready(warp[l]);
        }
    }
    if (kind == Collective::sync) take(token);
}

// All lanes are here: works out what each gets.
void Processor::complete(Collective kind, uint32_t mask, Thread* warp) {
    uint64_t values[kWarp];
    uint32_t votes = 0;
    switch (kind) {
        case Collective::sync:
            break;
        case Collective::shuffle:
            for (int l = 0; l < kWarp; ++l) values[l] = (mask >> l & 1) != 0 ? warp[l].value : ~uint64_t{0};
            for (int l = 0; l < kWarp; ++l)
                if ((mask >> l & 1) != 0) warp[l].value = values[warp[l].source];
            break;
        case Collective::ballot:
            for (int l = 0; l < kWarp; ++l)
                if ((mask >> l & 1) != 0 && warp[l].value != 0) votes |= 1u << l;
            for (int l = 0; l < kWarp; ++l)
                if ((mask >> l & 1) != 0) warp[l].value = votes;
            break;
        case Collective::multiply:
            for (int l = 0; l < kWarp; ++l) {
                for (int i = 0; i < 4; ++i) {
                    const int row_lane = l / 4 * 4, col_lane = (l % 4 * 2 + i % 2) * 4;
                    uint32_t sum = static_cast<uint32_t>(warp[l].d[i]);  // wraps, as the hardware does
                    for (int k = 0; k < 32; ++k) {
                        const uint32_t a = warp[row_lane + k / 4 % 4].a[k / 16 * 2 + i / 2], b = warp[col_lane + k / 4 % 4].b[k / 16];
                        sum +=
                            static_cast<uint32_t>(int{static_cast<int8_t>(a >> (k % 4 * 8))} * int{static_cast<int8_t>(b >> (k % 4 * 8))});
                    }
                    warp[l].d[i] = static_cast<int32_t>(sum);
                }
            }
            break;
    }
}

std::string Processor::describe_stall() const {
    std::ostringstream out;
    out << "no thread can go on:";
    int n_shown = 0;
    for (size_t i = 0; i < n_threads_ && n_shown < 4; ++i) {
        const Thread& thread = threads_[i];
        // Of those that wait for the same, one is enough.
        if (i > 0 && thread.wait == threads_[i - 1].wait && thread.mask == threads_[i - 1].mask) continue;
        if (thread.wait == Wait::barrier)
            out << (n_shown++ ? ", " : " ") << "thread " << i << " waits at __syncthreads (" << place(thread.where) << ')';
        if (thread.wait == Wait::collective)
            out << (n_shown++ ? ", " : " ") << "thread " << i << " waits in " << kCollectiveNames[static_cast<int>(thread.kind)] << " ("
                << place(thread.where) << "), mask " << hex(thread.mask);
    }
    return std::move(out).str();
}

Processor& processor() {
    thread_local Processor processor;
    return processor;
}

char g_fence_token;

}  // namespace

std::string run_block(const Grid& grid, uint64_t index) {
    return processor().run(grid, index);
}

void* shared_data() {
    return processor().shared();
}
int lane() {
    return processor().lane();
}
void barrier(Where where) {
    processor().barrier(where);
}
void sync_warp(uint32_t mask, Where where) {
    processor().collect(Collective::sync, mask, where);
}

uint64_t shuffle(uint32_t mask, uint64_t value, int source, Where where) {
    Thread& self = processor().running();
    self.value = value;
    self.source = source;
    processor().collect(Collective::shuffle, mask, where);
    return self.value;
}

uint32_t ballot(uint32_t mask, bool vote, Where where) {
    Thread& self = processor().running();
    self.value = vote;
    processor().collect(Collective::ballot, mask, where);
    return static_cast<uint32_t>(self.value);
}

void multiply_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
    Thread& self = processor().running();
    std::memcpy(self.a, a, sizeof a);
    std::memcpy(self.b, b, sizeof b);
    std::memcpy(self.d, d, sizeof d);
    processor().collect(Collective::multiply, 0xffffffffu, where);
    std::memcpy(d, self.d, sizeof d);
}

void trap(Where where) {
    processor().fail(text("__trap (", place(where), ") in thread ", processor().running().number));
}

void fence() {
    give(&g_fence_token);
    take(&g_fence_token);
}

}  // namespace moepic::simt
