// Fills a model's memory from its file. Knows which bytes go where in which layout; not which part of a model they are (model.cpp places
// them).
//
// Weights are read and re-tiled a piece at a time, small enough to lie in a core's own cache between the two: memory sees each byte once in
// the page cache and once in its place, as if the file were only read. Reading by calls also needs no page table of the file.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "base/thread_pool.h"
#include "expert/strip.h"
#include "gguf/file.h"
#include "model/config.h"
#include "ops/ops.h"

namespace moepic {

// What one layer (or the rest of the model) wants filled.
struct LoadList {
    struct Floats {
        const gguf::Tensor* tensor;
        float* dst;
        bool turned;  // [ne0][ne1] instead of the file's [ne1][ne0]
    };
    struct Bytes {  // as they are
        const gguf::Tensor* tensor;
        std::byte* dst;
    };
    struct LatentParts {  // engine/latent_parts.h
        const gguf::Tensor* joined;
        int64_t n_head;
        std::byte *keys, *values;
    };
    struct Strips {  // all experts of a set, one after the other
        const ExpertBinding* binding;
        const StripLayout* layout;
        std::byte* dst;
    };
    std::vector<Floats> floats;
    std::vector<Bytes> bytes;
    std::vector<FileMatrix> matrices;
    std::vector<LatentParts> latent_parts;
    std::vector<Strips> strips;

    uint64_t file_bytes() const;
};

class Loader {
public:
    Loader(const gguf::File& file, const ops::Kernels& kernels, const LatentConfig& latent, int n_threads);

    // Returns when all of it is in place. Error(io) names the tensor that could not be read.
    void load(const LoadList& list);

private:
    // Rows [first, first + count) of a matrix.
    struct Piece {
        const FileMatrix* matrix;
        int64_t first, count;
    };
    // Matrices that are filled together, and the memory that all of them lie in.
    struct Group {
        std::vector<Piece> pieces;
        uintptr_t begin = UINTPTR_MAX, end = 0;
        int64_t n_pages() const;  // huge ones
        void clear_page(int64_t i) const;
    };

    void load_floats(const LoadList::Floats& floats);
    void load_bytes(const gguf::Tensor& tensor, std::byte* dst);
    void load_matrices(const std::vector<FileMatrix>& matrices);
    Group take_group(const FileMatrix*& rest, const FileMatrix* end);
    void load_piece(const Piece& piece, std::byte* buffer);
    void load_joined(const LoadList::Strips& strips);
    // ThreadPool::run for tasks that may throw: the first error is thrown when all have returned.
    template <class Task>
    void run(int64_t n_tasks, const Task& task);

    const gguf::File& file_;
    const ops::Kernels& kernels_;
    const LatentConfig& latent_;
    ThreadPool pool_;
    std::vector<std::vector<std::byte>> buffers_;  // [thread]
    std::atomic<bool> failed_{false};              // tasks that see it return at once
    std::mutex mutex_;
    std::exception_ptr error_;  // under mutex_ while tasks run
};

}  // namespace moepic
