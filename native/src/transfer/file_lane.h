// Reads files into frames, past the page cache: a RAM budget is a promise only when the kernel does not keep a second copy.
// io_uring where the kernel allows it, else a pool of threads that pread. Where a file system refuses O_DIRECT, ordinary reads whose pages
// are dropped afterwards (POSIX_FADV_DONTNEED), said in the log and, under strict, an Error.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "transfer/lane.h"

namespace moepic::transfer {

enum class FileIo : int { automatic = 0, uring = 1, threads = 2 };

struct FileLaneOptions {
    std::vector<std::string> paths;  // source i of a Piece
    uint64_t frame_bytes = 0;        // payload of the longest transfer; the lane adds what alignment may take (see file_frame_bytes)
    int max_pieces = 0;              // of one transfer
    int n_frames = 16;
    FileIo io = FileIo::automatic;
    int n_threads = 4;    // of the pread pool, and so its reads in flight
    bool direct = true;   // false: through the page cache, on request
    bool strict = false;  // a downgrade (no O_DIRECT, no io_uring though asked for) is Error(io) instead of a warning
};

// What a frame takes in memory for `bytes` in at most `max_pieces` pieces: each may begin and end inside a page.
uint64_t file_frame_bytes(uint64_t bytes, int max_pieces);

// Opens every path (Error(io) names it). A read error, a short read (the file was truncated) or a file that shrank fails that transfer
// alone.
std::unique_ptr<Lane> open_file_lane(const FileLaneOptions& options, Lane::OnReady on_ready);

}  // namespace moepic::transfer
