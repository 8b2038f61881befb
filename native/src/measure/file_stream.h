// A file lane kept busy with random granule-shaped transfers: `under_way` at a time, each replaced as it lands.
#pragma once

#include <memory>
#include <mutex>
#include <random>
#include <string>

#include "transfer/lane.h"

namespace moepic::measure {

class FileStream {
public:
    static constexpr int kPieces = 3;    // of a transfer: gate, up, down, of piece_bytes each, at random places of the file
    static constexpr int kUnderWay = 8;  // transfers: the ring is never short of reads
    // Error(argument) when the file is too small.
    FileStream(const std::string& path, uint64_t piece_bytes, bool strict, int under_way = kUnderWay);
    ~FileStream();

    void start();
    // Bytes asked for and delivered so far. Rethrows what a read failed with.
    uint64_t bytes() const;
    std::string describe() const { return lane_->describe(); }

private:
    void submit();  // with the mutex held

    const std::string path_;
    const uint64_t piece_bytes_;
    const int under_way_;
    uint64_t file_bytes_ = 0;
    mutable std::mutex mutex_;  // guards the next three, for the threads of the lane and the caller
    std::mt19937_64 random_{2};
    bool stopping_ = false;
    std::shared_ptr<const Error> error_;    // the first
    std::unique_ptr<transfer::Lane> lane_;  // last: its threads use what is above
};

}  // namespace moepic::measure
