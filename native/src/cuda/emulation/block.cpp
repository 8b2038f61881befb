#include "block.h"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <sstream>
#include <vector>

#include "access.h"
#include "base/error.h"
#include "fiber.h"
#include "random.h"
#include "sanitizers.h"

constinit thread_local uint3 threadIdx, blockIdx;
constinit thread_local dim3 blockDim, gridDim;

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
    return cat(file, ':', where.line());
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
    void check_leaving(const Thread& self);
    Fiber& make_current(Thread& thread);
    void make_ready(Thread& thread);
    Thread* take_ready();
    void wait(Wait what);
    void complete(Collective kind, uint32_t mask, Thread* warp);
    std::string describe_stall() const;

    Fiber home_;  // where run() waits while the block's threads run
    std::vector<Thread> threads_;
    size_t n_threads_ = 0;
    struct Warp {
        uint32_t waiting, gone;  // lanes in a collective; lanes that have left
    };
    std::vector<Warp> warps_;
    std::vector<Thread*> ready_;  // a ring: a thread is in it at most once
    size_t ready_first_ = 0, n_ready_ = 0;
    Thread* current_ = nullptr;
    const Grid* grid_ = nullptr;
    void* shared_ = nullptr;
    Reach reach_;
    size_t n_at_barrier_ = 0, n_gone_ = 0;
    std::string failure_;
    // What ThreadSanitizer knows barriers by. Two take turns, or what a thread wrote after a barrier would seem given before it.
    char barrier_tokens_[2] = {};
    int barrier_turn_ = 0;
    char warp_tokens_[64] = {};
    int warp_turn_ = 0;
    char end_token_ = 0;
};

void Processor::prepare(const Grid& grid, uint64_t index) {
    grid_ = &grid;
    n_threads_ = size_t{grid.block.x} * grid.block.y * grid.block.z;
    while (threads_.size() < n_threads_) {
        threads_.emplace_back();
        threads_.back().fiber = std::make_unique<Fiber>(&Processor::body);
    }
    ready_.resize(n_threads_);
    warps_.assign((n_threads_ + kWarp - 1) / kWarp, {0, 0});
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
    const uint64_t seed = random_of(grid.seed + index);
    for (size_t i = n_threads_; i > 1; --i) std::swap(ready_[i - 1], ready_[random_of(seed + i) % i]);
}

std::string Processor::run(const Grid& grid, uint64_t index) {
    prepare(grid, index);
    shared_ = nullptr;
    if (grid.shared_bytes > 0) {
        if (posix_memalign(&shared_, 128, grid.shared_bytes) != 0) throw std::bad_alloc();
        std::memset(shared_, 0xff, grid.shared_bytes);
    }
    give(const_cast<Grid*>(&grid));
    reach_ = {};
    reach_.shared = {reinterpret_cast<uintptr_t>(shared_), grid.shared_bytes};
    reach_.params = {reinterpret_cast<uintptr_t>(grid.params.data()), grid.params.size()};
    set_reach(&reach_);
    home_.switch_to(make_current(*take_ready()));
    set_reach(nullptr);
    take(&end_token_);
    if (failure_.empty() && n_gone_ < n_threads_) failure_ = describe_stall();
    std::free(shared_);
    return failure_;
}

void Processor::run_thread() {
    take(const_cast<Grid*>(grid_));
    grid_->call(grid_->params.data());
    Thread& self = *current_;
    check_leaving(self);
    self.wait = Wait::gone;
    ++n_gone_;
    warps_[self.number / kWarp].gone |= 1u << self.number % kWarp;
    give(&end_token_);
    Thread* next = take_ready();
    if (next == nullptr) self.fiber->leave_to(home_);
    self.fiber->leave_to(make_current(*next));
}

// Nobody may be waiting for a thread that leaves.
void Processor::check_leaving(const Thread& self) {
    for (size_t i = 0; n_at_barrier_ > 0 && i < n_threads_; ++i)
        if (threads_[i].wait == Wait::barrier)
            fail(cat("thread ", self.number, " left while thread ", i, " waits at __syncthreads (", place(threads_[i].where), ")"));
    const int lane = self.number % kWarp;
    for (uint32_t others = warps_[self.number / kWarp].waiting; others != 0; others &= others - 1) {
        const Thread& other = threads_[self.number - lane + std::countr_zero(others)];
        if ((other.mask >> lane & 1) != 0)
            fail(cat("thread ", self.number, " left while thread ", other.number, " waits for it in ",
                     kCollectiveNames[static_cast<int>(other.kind)], " (", place(other.where), "), mask ", hex(other.mask)));
    }
}

Fiber& Processor::make_current(Thread& thread) {
    current_ = &thread;
    threadIdx = thread.index;
    reach_.stack = thread.fiber->stack();
    return *thread.fiber;
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
    give(&end_token_);  // for the case that it is never resumed
    Thread* next = take_ready();
    if (next == nullptr) {
        self.fiber->switch_to(home_);  // nobody can go on; not resumed
        __builtin_trap();
    }
    self.fiber->switch_to(make_current(*next));
}

void Processor::fail(const std::string& what) {
    failure_ = what;
    give(&end_token_);
    current_->fiber->switch_to(home_);  // the block is abandoned where it stands
    __builtin_trap();
}

void Processor::barrier(Where where) {
    Thread& self = *current_;
    self.where = where;
    if (n_gone_ > 0)
        fail(cat("thread ", self.number, " reached __syncthreads (", place(where), ") after ", n_gone_, " threads of its block had left"));
    if (n_at_barrier_ > 0) {
        // One that waits stands for all: each was compared with another when it came.
        for (size_t i = 0; i < n_threads_; ++i) {
            const Thread& other = threads_[i];
            if (other.wait != Wait::barrier) continue;
            if (other.where.line() != where.line() || std::strcmp(other.where.file_name(), where.file_name()) != 0)
                fail(cat("thread ", self.number, " is at __syncthreads (", place(where), "), thread ", i, " at another (",
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
        fail(cat("lane ", own_lane, " calls ", name, " (", place(where), ") with mask ", hex(mask), ", which lacks it"));
    if (n_lanes < kWarp && mask >> n_lanes != 0)
        fail(cat(name, " (", place(where), ") has mask ", hex(mask), ", but the warp has ", n_lanes, " lanes: the block has ", n_threads_,
                 " threads"));
    self.kind = kind;
    self.mask = mask;
    self.where = where;
    self.token = nullptr;
    Warp& state = warps_[self.number / kWarp];
    if (const uint32_t gone = state.gone & mask; gone != 0)
        fail(cat("lane ", own_lane, " calls ", name, " (", place(where), ") with mask ", hex(mask), ", but lane ", std::countr_zero(gone),
                 " has left"));
    uint32_t here = 1u << own_lane;
    for (uint32_t others = state.waiting & mask; others != 0; others &= others - 1) {
        const Thread& other = warp[std::countr_zero(others)];
        // Lanes that don't wait for each other may still meet, after what they wait for first.
        if ((other.mask >> own_lane & 1) == 0) continue;
        if (other.kind != kind || other.mask != mask)
            fail(cat("lane ", own_lane, " calls ", name, " (", place(where), ") with mask ", hex(mask), " while lane ",
                     std::countr_zero(others), " waits in ", kCollectiveNames[static_cast<int>(other.kind)], " (", place(other.where),
                     ") with mask ", hex(other.mask)));
        here |= 1u << (other.number % kWarp);
        self.token = other.token;
    }
    if (self.token == nullptr) self.token = &warp_tokens_[warp_turn_++ % sizeof warp_tokens_];
    char* token = self.token;
    if (kind == Collective::sync) give(token);
    if (here != mask) {
        state.waiting |= 1u << own_lane;
        wait(Wait::collective);
    } else {
        complete(kind, mask, warp);
        state.waiting &= ~mask;
        for (uint32_t others = mask & ~(1u << own_lane); others != 0; others &= others - 1) {
            Thread& other = warp[std::countr_zero(others)];
            other.wait = Wait::no;
            make_ready(other);
        }
    }
    if (kind == Collective::sync) take(token);
}

// The product that simt_nvcc.h draws: fragments to matrices, and each lane its four sums.
void multiply(Thread* warp) {
    int8_t a[16][32], b[8][32];  // b by columns
    for (int l = 0; l < kWarp; ++l) {
        const int g = l / 4, k = l % 4 * 4;
        for (int i = 0; i < 4; ++i) std::memcpy(&a[g + i % 2 * 8][k + i / 2 * 16], &warp[l].a[i], 4);
        for (int i = 0; i < 2; ++i) std::memcpy(&b[g][k + i * 16], &warp[l].b[i], 4);
    }
    for (int l = 0; l < kWarp; ++l) {
        for (int i = 0; i < 4; ++i) {
            const int8_t *row = a[l / 4 + i / 2 * 8], *col = b[l % 4 * 2 + i % 2];
            int32_t sum = 0;
            for (int k = 0; k < 32; ++k) sum += row[k] * col[k];
            warp[l].d[i] =
                static_cast<int32_t>(static_cast<uint32_t>(warp[l].d[i]) + static_cast<uint32_t>(sum));  // wraps, as hardware does
        }
    }
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
            multiply(warp);
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

// Not inlined: in glibc before 2.39 a thread's first touch of a library's thread-local data through a descriptor spoils vector registers,
// which only a caller that expects a call survives. Whoever runs a block comes through here first.
[[gnu::noinline]] Processor& processor() {
    thread_local Processor processor;
    return processor;
}

char g_fence_token;

}  // namespace

std::string run_block(const Grid& grid, uint64_t index) {
    try {
        return processor().run(grid, index);
    } catch (const std::bad_alloc&) {
        return "the host has no memory for the stacks or the shared memory of a block";
    }
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
    processor().fail(cat("__trap (", place(where), ") in thread ", processor().running().number));
}

void fail_thread(const std::string& what) {
    processor().fail(cat("thread ", processor().running().number, ": ", what));
}

void fence() {
    give(&g_fence_token);
    take(&g_fence_token);
}

}  // namespace moepic::simt
