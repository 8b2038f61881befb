#include "engine/loader.h"

#include <algorithm>

#include "base/region.h"
#include "engine/latent_parts.h"

namespace moepic {
namespace {

// Read and re-tiled at once: fits the second-level cache of a core. On Zen 5 half of it was slower by a tenth, twice as much no faster.
constexpr size_t kPieceBytes = size_t{256} << 10;
// Bytes that go where they lie need no cache; whole huge pages, so that no two threads clear the same one.
constexpr size_t kBytesPiece = 2 * kHugePage;
// Per thread, of what is cleared before it is filled: enough pieces that threads end together, and few enough that some of the cleared
// lines are still in a cache when they are written. 1 to 4 MiB were alike; a layer at once was slower by a third, with a copy in
// re-tiling's place.
constexpr size_t kGroupBytes = size_t{2} << 20;

size_t file_row_bytes(const FileMatrix& m) {
    return static_cast<size_t>(m.n_parts) * row_bytes(m.type, m.cols);
}

}  // namespace

uint64_t LoadList::file_bytes() const {
    uint64_t total = 0;
    for (const Floats& f : floats) total += f.tensor->n_bytes;
    for (const Bytes& b : bytes) total += b.tensor->n_bytes;
    for (const FileMatrix& m : matrices) total += static_cast<size_t>(m.rows) * file_row_bytes(m);
    for (const LatentParts& p : latent_parts) total += p.joined->n_bytes;
    for (const Strips& s : strips) total += s.layout->strip_bytes() * static_cast<size_t>(s.binding->n_expert);
    return total;
}

Loader::Loader(const gguf::File& file, const ops::Kernels& kernels, const LatentConfig& latent, int n_threads)
    : file_(file), kernels_(kernels), latent_(latent), pool_(n_threads), buffers_(static_cast<size_t>(pool_.size())) {}

template <class Task>
void Loader::run(int64_t n_tasks, const Task& task) {
    pool_.run(n_tasks, [&](int64_t i, int thread) {
        if (failed_.load(std::memory_order_relaxed)) return;
        try {
            task(i, buffers_[static_cast<size_t>(thread)]);
        } catch (...) {
            const std::lock_guard lock(mutex_);
            if (!error_) error_ = std::current_exception();
            failed_.store(true, std::memory_order_relaxed);
        }
    });
    if (error_) std::rethrow_exception(error_);
}

void Loader::load(const LoadList& list) {
    for (const LoadList::Floats& floats : list.floats) load_floats(floats);
    for (const LoadList::Bytes& bytes : list.bytes) load_bytes(*bytes.tensor, bytes.dst);
    load_matrices(list.matrices);
    for (const LoadList::LatentParts& p : list.latent_parts) {
        std::vector<std::byte> joined(p.joined->n_bytes);
        load_bytes(*p.joined, joined.data());
        fill_latent_parts(kernels_, pool_, joined.data(), Type{p.joined->type}, latent_, p.n_head, p.keys, p.values);
    }
    std::vector<FileMatrix> matrices;
    for (const LoadList::Strips& strips : list.strips) {
        if (!has_whole_granules(*strips.binding, *strips.layout)) {
            load_joined(strips);
            continue;
        }
        matrices.clear();
        for (int64_t e = 0; e < strips.binding->n_expert; ++e)
            list_matrices(*strips.binding, *strips.layout, e, strips.dst + static_cast<size_t>(e) * strips.layout->strip_bytes(), matrices);
        load_matrices(matrices);
    }
}

void Loader::load_floats(const LoadList::Floats& floats) {
    const gguf::Tensor& tensor = *floats.tensor;
    std::vector<std::byte> bytes(tensor.n_bytes);
    file_.read(tensor, 0, bytes);
    const size_t rows = tensor.ne[1], cols = tensor.ne[0];
    type_info(Type{tensor.type}).decode(bytes.data(), floats.dst, static_cast<int64_t>(rows * cols));
    if (!floats.turned) return;
    const std::vector<float> old(floats.dst, floats.dst + rows * cols);
    for (size_t i = 0; i < old.size(); ++i) floats.dst[i % cols * rows + i / cols] = old[i];
}

void Loader::load_bytes(const gguf::Tensor& tensor, std::byte* dst) {
    run(static_cast<int64_t>((tensor.n_bytes + kBytesPiece - 1) / kBytesPiece), [&](int64_t i, std::vector<std::byte>&) {
        const uint64_t at = static_cast<uint64_t>(i) * kBytesPiece;
        file_.read(tensor, at, {dst + at, std::min<uint64_t>(kBytesPiece, tensor.n_bytes - at)});
    });
}

// While the threads fill one group, they clear the memory of the next: a thread that waits for the host to find a page delays nobody.
void Loader::load_matrices(const std::vector<FileMatrix>& matrices) {
    const FileMatrix* rest = matrices.data();
    const FileMatrix* const end = rest + matrices.size();
    for (Group group, next = take_group(rest, end);; group = std::move(next), next = take_group(rest, end)) {
        const int64_t n_pages = next.n_pages(), n_pieces = static_cast<int64_t>(group.pieces.size());
        if (n_pages + n_pieces == 0) return;
        run(n_pages + n_pieces, [&](int64_t i, std::vector<std::byte>& buffer) {
            i < n_pages ? next.clear_page(i) : load_piece(group.pieces[static_cast<size_t>(i - n_pages)], buffer.data());
        });
    }
}

Loader::Group Loader::take_group(const FileMatrix*& rest, const FileMatrix* end) {
    Group group;
    size_t longest = 0;
    for (size_t bytes = 0; rest != end && bytes < kGroupBytes * static_cast<size_t>(pool_.size()); ++rest) {
        const FileMatrix& m = *rest;
        const size_t stride = file_row_bytes(m);
        const int64_t count = std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / stride) / ops::kTileRows) * ops::kTileRows;
        for (int64_t row = 0; row < m.rows; row += count) group.pieces.push_back({&m, row, std::min(count, m.rows - row)});
        longest = std::max(longest, static_cast<size_t>(std::min(count, m.rows)) * stride);
        bytes += static_cast<size_t>(m.rows) * stride;
        const size_t last_part = static_cast<size_t>(m.n_parts - 1) * m.dst_step;
        group.begin = std::min(group.begin, reinterpret_cast<uintptr_t>(m.dst));
        group.end = std::max(group.end, reinterpret_cast<uintptr_t>(m.dst) + last_part + ops::tiled_bytes(m.type, m.rows, m.cols));
    }
    for (std::vector<std::byte>& buffer : buffers_) buffer.resize(std::max(buffer.size(), longest));
    return group;
}

int64_t Loader::Group::n_pages() const {
    return pieces.empty() ? 0 : static_cast<int64_t>((end - 1) / kHugePage - begin / kHugePage + 1);
}

void Loader::Group::clear_page(int64_t i) const {
    const uintptr_t page = (begin / kHugePage + static_cast<uintptr_t>(i)) * kHugePage;
    const uintptr_t from = std::max(begin, page), to = std::min(end, page + kHugePage);
    populate(reinterpret_cast<const std::byte*>(from), to - from);
}

void Loader::load_piece(const Piece& piece, std::byte* buffer) {
    const FileMatrix& m = *piece.matrix;
    const size_t part = row_bytes(m.type, m.cols), stride = file_row_bytes(m), first = static_cast<size_t>(piece.first);
    file_.read(*m.tensor, m.at + first * stride, {buffer, static_cast<size_t>(piece.count) * stride});
    for (int64_t p = 0; p < m.n_parts; ++p) {
        const size_t n = static_cast<size_t>(p);  // 16 rows take 16 row_bytes in both layouts
        kernels_.tile_rows(m.type, buffer + n * part, stride, piece.count, m.cols, m.dst + n * m.dst_step + first * part,
                           ops::TileStores::past);
    }
}

// Experts whose granules straddle pieces of the file: whole runs are read, and a filler joins them.
void Loader::load_joined(const LoadList::Strips& strips) {
    const ExpertBinding& set = *strips.binding;
    const StripLayout& layout = *strips.layout;
    std::vector<GranuleRun> runs;
    for (int64_t g = 0; g < layout.n_granules; g = runs.back().first + runs.back().count) runs.push_back(read_unit(set, layout, g));
    const int64_t n_runs = static_cast<int64_t>(runs.size());
    run(set.n_expert * n_runs, [&](int64_t i, std::vector<std::byte>& buffer) {
        const int64_t expert = i / n_runs;
        const GranuleRun& run = runs[static_cast<size_t>(i % n_runs)];
        std::vector<Extent> extents;
        list_extents(set, layout, expert, run, extents);
        uint64_t bytes = 0;
        for (const Extent& extent : extents) bytes += extent.bytes;
        buffer.resize(std::max(buffer.size(), bytes));
        std::vector<const std::byte*> pieces;
        uint64_t at = 0;
        for (const Extent& extent : extents) {
            file_.read(*extent.tensor, extent.at, {buffer.data() + at, extent.bytes});
            pieces.push_back(buffer.data() + at);
            at += extent.bytes;
        }
        StripFiller filler(kernels_);
        filler.reserve(set, layout);
        std::byte* strip = strips.dst + static_cast<size_t>(expert) * layout.strip_bytes();
        for (int64_t g = run.first; g < run.first + run.count; ++g)
            filler.fill(set, layout, FetchedSource(extents, pieces), expert, g, strip + static_cast<size_t>(g) * layout.granule_bytes);
    });
}

}  // namespace moepic
