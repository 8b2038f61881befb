// What one machine does per second, and what it takes to do anything at all: the numbers a plan is made from (docs/planning.md, "Machine
// files"). Each is the median of several windows, given with the smallest and the largest. Knows no model: shapes are stated in granules.h
// and file_stream.h.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace moepic::measure {

struct Spread {  // bytes per second, or seconds; over windows
    double median = 0.0, min = 0.0, max = 0.0;
    int64_t repeats = 0;
};

struct MachineOptions {
    std::string path;           // the file that is read; larger than what a disk or host may cache
    int n_threads = 0;          // 0: all usable cores
    int isa = -1;               // -1: best
    uint64_t memory_bytes = 0;  // of what is read and computed from memory, well above the last-level cache
    double seconds = 0.0;       // of each of the eight measurements
    bool strict = false;        // a file that can't be read past the page cache is an error
    std::function<bool(const char* stage, int64_t done, int64_t total)> progress;  // false cancels; on the calling thread
};

constexpr uint64_t kSmallPiece = 294912;  // gate, up or down of a Q4_K granule at n_embd 2048
constexpr uint64_t kLargePiece = uint64_t{1} << 20;

struct MachineRates {
    Spread memory;                           // read by all threads
    Spread compute;                          // weights of granules computed from memory, all threads
    Spread file_small, file_large;           // random pieces of kSmallPiece and kLargePiece bytes
    Spread file_together, compute_together;  // small pieces and granules at the same time
    Spread landing;                          // granules re-tiled from a file's rows into the kernels' layout, all threads
    Spread file_single_s;                    // a transfer of FileStream::kPieces small pieces with nothing else under way
    Spread job_s, handoff_s;                 // handing.h
    std::string file_lane;                   // how the file was read
    const char* isa = "";                    // static
    int n_threads = 0;
};

// Throws argument, io, unsupported, no_memory, cancelled.
MachineRates measure_machine(const MachineOptions& options);

}  // namespace moepic::measure
