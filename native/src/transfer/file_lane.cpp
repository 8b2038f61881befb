// The file lane: how pieces become aligned reads, and the two kinds of movers, a ring and a pool of threads.
#include "transfer/file_lane.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "transfer/source_file.h"
#include "transfer/uring.h"

namespace moepic::transfer {
namespace {

// Of one read. Large enough that a disk runs at its best, small enough that a big piece makes several reads in flight.
constexpr uint64_t kReadBytes = uint64_t{1} << 20;
// Reads in flight of the ring. Disks measured so far are at their best with 2 to 4 of these; prefetches have half of them, and a demand
// waits behind what is in flight, so no more than a fast disk needs.
constexpr unsigned kDepth = 8;

uint64_t round_up(uint64_t bytes, uint64_t step) {
    return (bytes + step - 1) / step * step;
}

void check(const FileLaneOptions& options) {
    check_frames("file lane", options.frame_bytes, options.max_pieces, options.n_frames);
    if (options.paths.empty()) fail(Code::argument, "file lane: no paths");
    if (options.n_threads < 1 || options.n_threads > 256) {
        fail(Code::argument, "file lane: n_threads is ", options.n_threads, ", expected 1 to 256");
    }
}

std::vector<SourceFile> open_files(const FileLaneOptions& options) {
    std::vector<SourceFile> files;
    for (const std::string& path : options.paths) files.emplace_back(path, options.direct, options.strict);
    return files;
}

class FileLane : public LedgerLane {
public:
    FileLane(const FileLaneOptions& options, int depth, OnReady on_ready)
        : LedgerLane("file lane", options.paths.size(), options.max_pieces, options.n_frames,
                     file_frame_bytes(options.frame_bytes, options.max_pieces), depth, std::move(on_ready)),
          files_(open_files(options)) {}

protected:
    Cut cut(std::span<const Piece> pieces) const final {
        Cut cut;
        for (const Piece& piece : pieces) {
            const uint64_t begin = piece.offset / kAlignment * kAlignment;
            const uint64_t end = round_up(piece.offset + piece.bytes, kAlignment);
            cut.places.push_back(cut.frame_bytes + (piece.offset - begin));
            // Equal reads, so that none is a splinter.
            const uint64_t n_reads = (end - begin + kReadBytes - 1) / kReadBytes;
            const uint64_t read_bytes = round_up((end - begin + n_reads - 1) / n_reads, kAlignment);
            for (uint64_t offset = begin; offset < end; offset += read_bytes) {
                Step step;
                step.source = piece.source;
                step.offset = offset;
                step.bytes = std::min(read_bytes, end - offset);
                step.skip = std::max(piece.offset, offset) - offset;
                step.payload = std::min(piece.offset + piece.bytes, offset + step.bytes) - (offset + step.skip);
                step.at = cut.frame_bytes + (offset - begin);
                cut.steps.push_back(step);
            }
            cut.frame_bytes += end - begin;
        }
        return cut;
    }

    Read read_of(const Claim& claim) const { return Read(files_[static_cast<size_t>(claim.step.source)], claim); }
    void finish(const Read& read) { ledger_.finish(read.claim(), read.moved_bytes(), read.error()); }

    std::string describe_with(const std::string& reader) const {
        std::string text = "file: " + reader;
        const auto count = [&](SourceFile::Pages pages) {
            return std::count_if(files_.begin(), files_.end(), [&](const SourceFile& file) { return file.pages() == pages; });
        };
        if (const auto n = count(SourceFile::Pages::none)) text += n == std::ssize(files_) ? ", direct" : cat(", ", n, " direct");
        if (const auto n = count(SourceFile::Pages::dropped)) {
            text +=
                n == std::ssize(files_) ? ", page cache given back (no O_DIRECT)" : cat(", ", n, " page cache given back (no O_DIRECT)");
        }
        if (count(SourceFile::Pages::kept)) text += ", page cache";
        return text;
    }

    const std::vector<SourceFile> files_;
};

class ThreadsFileLane final : public FileLane {
public:
    ThreadsFileLane(const FileLaneOptions& options, OnReady on_ready) : FileLane(options, options.n_threads, std::move(on_ready)) {
        try {
            for (int i = 0; i < options.n_threads; ++i) threads_.emplace_back([this] { move_steps(); });
        } catch (...) {
            join();
            throw;
        }
    }
    ~ThreadsFileLane() override { join(); }

    std::string describe() const override { return describe_with(cat(threads_.size(), " threads")); }

private:
    void move_steps() {
        while (const auto claim = ledger_.claim()) {
            Read read = read_of(*claim);
            for (bool ended = false; !ended;) {
                const ssize_t n = pread(read.fd(), read.to(), read.bytes(), static_cast<off_t>(read.offset()));
                ended = read.advance(n < 0 ? -errno : n);
            }
            finish(read);
        }
    }

    void join() {
        ledger_.stop();
        for (std::thread& thread : threads_) thread.join();
    }

    std::vector<std::thread> threads_;
};

// An eventfd: set by any thread, awaited by a poll in the ring.
class Doorbell {
public:
    Doorbell() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
        if (fd_ < 0) fail(Code::io, "io_uring: no eventfd: ", std::strerror(errno));
    }
    ~Doorbell() { close(fd_); }
    Doorbell(const Doorbell&) = delete;
    Doorbell& operator=(const Doorbell&) = delete;

    int fd() const noexcept { return fd_; }
    // Neither can fail in a way that matters: a full counter is set, an empty one is clear.
    void ring() const noexcept { [[maybe_unused]] const int refused = eventfd_write(fd_, 1); }
    void clear() const noexcept {
        eventfd_t count;
        [[maybe_unused]] const int refused = eventfd_read(fd_, &count);
    }

private:
    const int fd_;
};

// What the ring's thread sleeps in. Error(io) where the kernel refuses.
struct Ring {
    Doorbell bell;
    Uring calls{kDepth + 1};
};

class UringFileLane final : public FileLane {
public:
    UringFileLane(const FileLaneOptions& options, std::unique_ptr<Ring> ring, OnReady on_ready)
        : FileLane(options, kDepth, std::move(on_ready)), ring_(std::move(ring)) {
        ledger_.set_wake([this] { ring_->bell.ring(); });
        for (unsigned slot = 0; slot < kDepth; ++slot) free_slots_[n_free_++] = slot;
        thread_ = std::thread([this] { move_steps(); });
    }
    ~UringFileLane() override {
        ledger_.stop();
        thread_.join();
    }

    std::string describe() const override { return describe_with("io_uring"); }

private:
    static constexpr uint64_t kBellTag = kDepth;  // beyond the slots

    void move_steps() {
        try {
            run_ring();
        } catch (const Error& error) {
            log_message(LogLevel::error, "file lane: " + error.text() + "; its transfers fail from here on");
            // Frames whose reads are lost may still be written to; nothing is ever moved into any frame again, so nobody is misled.
            const auto lost = std::make_shared<const Error>(error);
            for (unsigned slot = 0; slot < kDepth; ++slot) {
                const bool is_free = std::find(free_slots_.begin(), free_slots_.begin() + n_free_, slot) != free_slots_.begin() + n_free_;
                if (!is_free) ledger_.finish(reads_[slot].claim(), 0, lost);
            }
            while (const auto claim = ledger_.claim()) ledger_.finish(*claim, 0, lost);
        }
    }

    void run_ring() {
        ring_->calls.poll_readable(ring_->bell.fd(), kBellTag);
        for (;;) {
            while (n_free_ > 0) {
                const auto claim = ledger_.try_claim();
                if (!claim) break;
                const unsigned slot = free_slots_[--n_free_];
                reads_[slot] = read_of(*claim);
                queue(slot);
            }
            // Stopped: what the kernel still writes to the frames is awaited, not abandoned. The poll is, with the ring.
            if (n_free_ == kDepth && ledger_.is_stopped()) return;
            ring_->calls.submit_and_wait();
            for (Uring::Result result; ring_->calls.take(result);) {
                if (result.tag == kBellTag) {
                    ring_->bell.clear();
                    ring_->calls.poll_readable(ring_->bell.fd(), kBellTag);
                    continue;
                }
                const auto slot = static_cast<unsigned>(result.tag);
                if (!reads_[slot].advance(result.value)) {
                    queue(slot);
                    continue;
                }
                free_slots_[n_free_++] = slot;
                finish(reads_[slot]);
            }
        }
    }

    void queue(unsigned slot) {
        const Read& read = reads_[slot];
        ring_->calls.read(read.fd(), read.to(), static_cast<uint32_t>(read.bytes()), read.offset(), slot);
    }

    const std::unique_ptr<Ring> ring_;  // the bell is any thread's; the calls, and all below, are the mover's once it runs
    std::array<Read, kDepth> reads_;
    std::array<unsigned, kDepth> free_slots_{};
    unsigned n_free_ = 0;
    std::thread thread_;
};

// Null where threads are to read: because they were asked for, or because the kernel refuses a ring, which is said.
std::unique_ptr<Ring> open_ring(const FileLaneOptions& options) {
    if (options.io == FileIo::threads) return nullptr;
    try {
        return std::make_unique<Ring>();
    } catch (const Error& error) {
        const bool asked = options.io == FileIo::uring;
        if (asked && options.strict) fail(Code::io, "file lane: ", error.text(), " (allow io_uring, or choose threads)");
        log_message(asked ? LogLevel::warning : LogLevel::info, "file lane: " + error.text() + "; reading with threads");
        return nullptr;
    }
}

}  // namespace

uint64_t file_frame_bytes(uint64_t bytes, int max_pieces) {
    // A piece of b bytes spans at most b + 2 (kAlignment - 1) rounded down to whole pages.
    return round_up(bytes + 2 * (kAlignment - 1) * static_cast<uint64_t>(max_pieces), kAlignment);
}

std::unique_ptr<Lane> open_file_lane(const FileLaneOptions& options, Lane::OnReady on_ready) {
    check(options);
    if (auto ring = open_ring(options)) return std::make_unique<UringFileLane>(options, std::move(ring), std::move(on_ready));
    return std::make_unique<ThreadsFileLane>(options, std::move(on_ready));
}

}  // namespace moepic::transfer
