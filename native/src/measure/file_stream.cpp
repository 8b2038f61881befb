#include "measure/file_stream.h"

#include <array>
#include <filesystem>

#include "transfer/file_lane.h"

namespace moepic::measure {
namespace {

constexpr uint64_t kStep = 32;  // tensors and their rows begin at multiples of it in ordinary files, not at pages

}  // namespace

FileStream::FileStream(const std::string& path, uint64_t piece_bytes, bool strict, int under_way)
    : path_(path), piece_bytes_(piece_bytes), under_way_(under_way) {
    transfer::FileLaneOptions options;
    options.paths = {path};
    options.frame_bytes = kPieces * piece_bytes;
    options.max_pieces = kPieces;
    options.n_frames = kUnderWay;
    options.strict = strict;
    lane_ = transfer::open_file_lane(options, [this](const transfer::Delivery& delivery) {
        std::lock_guard lock(mutex_);  // also over the calls: once the destructor has had it, the lane is not called any more
        if (delivery.error && !error_) error_ = delivery.error;
        if (delivery.error || stopping_) return;
        lane_->release(delivery.ticket);
        submit();
    });
    std::error_code failed;
    file_bytes_ = std::filesystem::file_size(path, failed);
    if (failed) fail(Code::io, "measure: '", path, "' can't be examined: ", failed.message());
    if (file_bytes_ < piece_bytes) {
        fail(Code::argument, "measure: '", path, "' has ", file_bytes_, " bytes, reading pieces of ", piece_bytes,
             " at random places needs more (name a larger file)");
    }
}

FileStream::~FileStream() {
    std::lock_guard lock(mutex_);
    stopping_ = true;
}

void FileStream::start() {
    std::lock_guard lock(mutex_);
    for (int i = 0; i < under_way_; ++i) submit();
}

void FileStream::submit() {
    std::array<transfer::Piece, kPieces> pieces;
    std::uniform_int_distribution<uint64_t> any(0, (file_bytes_ - piece_bytes_) / kStep);
    for (transfer::Piece& piece : pieces) piece = {0, any(random_) * kStep, piece_bytes_};
    lane_->submit(pieces, transfer::Urgency::demand);
}

uint64_t FileStream::bytes() const {
    std::lock_guard lock(mutex_);
    if (error_) throw Error(*error_);
    return lane_->stats().bytes;
}

}  // namespace moepic::measure
