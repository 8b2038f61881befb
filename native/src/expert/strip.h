// A strip: one expert in memory as granules in order, each granule's gate, up and down weights adjacent, so that a run of granules is one
// run of bytes and any cut at a granule is a cut of the strip.
//
//   strip    [ granule 0 | granule 1 | ... ]
//   granule  [ gate: G rows x n_embd | up: G rows x n_embd | down: n_embd rows x G columns ]   each part tiled (ops.h), 64-byte aligned
//            [ gate bias: G floats | up bias: G floats ]                                       only where the experts have biases
//
// Knows bytes and shapes; not who wants them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/binding.h"
#include "ops/ops.h"

namespace moepic {

struct StripLayout {
    int64_t n_embd = 0, n_ff = 0;
    int64_t granule = 0, n_granules = 0;
    Type gate_type{}, up_type{}, down_type{};
    size_t up_offset = 0, down_offset = 0;            // inside a granule
    size_t gate_bias_offset = 0, up_bias_offset = 0;  // 0: no biases
    size_t granule_bytes = 0;
    size_t strip_bytes() const noexcept { return granule_bytes * static_cast<size_t>(n_granules); }

    ops::TiledMatrix gate(const std::byte* granule_data) const noexcept { return {gate_type, granule, n_embd, granule_data}; }
    ops::TiledMatrix up(const std::byte* granule_data) const noexcept { return {up_type, granule, n_embd, granule_data + up_offset}; }
    ops::TiledMatrix down(const std::byte* granule_data) const noexcept { return {down_type, n_embd, granule, granule_data + down_offset}; }
    const float* gate_bias(const std::byte* granule_data) const noexcept { return floats(granule_data, gate_bias_offset); }
    const float* up_bias(const std::byte* granule_data) const noexcept { return floats(granule_data, up_bias_offset); }

private:
    static const float* floats(const std::byte* data, size_t offset) noexcept {
        return offset ? reinterpret_cast<const float*>(data + offset) : nullptr;
    }
};

StripLayout make_strip_layout(const ExpertBinding& set, int64_t granule);

// Consecutive granules [first, first + count) of one expert.
struct GranuleRun {
    int64_t first = 0;
    int64_t count = 0;
    bool operator==(const GranuleRun&) const = default;
};

// Bytes [at, at + bytes) of a tensor's data.
struct Extent {
    const gguf::Tensor* tensor = nullptr;
    uint64_t at = 0;
    uint64_t bytes = 0;
};

// Where a filler finds the bytes of an extent.
class ExtentSource {
public:
    virtual const std::byte* find(const Extent& extent) const noexcept = 0;

protected:
    ~ExtentSource() = default;
};

// Extents as list_extents gave them, each in a buffer of its own. A run has a handful.
class FetchedSource final : public ExtentSource {
public:
    FetchedSource(std::span<const Extent> extents, std::span<const std::byte* const> pieces) : extents_(extents), pieces_(pieces) {}
    const std::byte* find(const Extent& wanted) const noexcept override;

private:
    std::span<const Extent> extents_;
    std::span<const std::byte* const> pieces_;
};

// A matrix of the file, and the tiled ones it becomes: a row of the file has the `cols` columns of each of n_parts, one after the other.
struct FileMatrix {
    const gguf::Tensor* tensor = nullptr;
    uint64_t at = 0;  // its first byte in the tensor's data
    Type type{};
    int64_t rows = 0, cols = 0;
    std::byte* dst = nullptr;  // of part 0
    int64_t n_parts = 1;
    size_t dst_step = 0;  // from part to part
};

// Whether each granule's rows, and its columns, lie in one matrix of the file: so it is with ordinary files, and with those that were cut
// at the granules of this layout or at multiples.
bool has_whole_granules(const ExpertBinding& set, const StripLayout& layout) noexcept;
// What fills the strip of an expert, where that is so: every byte of the file once, however its rows are shared out.
void list_matrices(const ExpertBinding& set, const StripLayout& layout, int64_t expert, std::byte* strip, std::vector<FileMatrix>& out);

// What a run of granules needs from the file, as few extents as the file's layout allows. Rows of gate and up are exactly the run's; down
// comes in whole matrices of the file's granules, so a run that ends inside one reads all of it.
void list_extents(const ExpertBinding& set, const StripLayout& layout, int64_t expert, GranuleRun run, std::vector<Extent>& out);

// The granules that had better be read together with `granule`, because cutting between them would read a matrix of down twice: one granule
// where the file stores down by granules, the whole expert of an ordinary file.
GranuleRun read_unit(const ExpertBinding& set, const StripLayout& layout, int64_t granule);

// Re-tiles granules from a file's bytes into strips. One per thread: it owns the buffer that joins pieces when a granule of the runtime
// straddles segments or granules of the file.
class StripFiller {
public:
    explicit StripFiller(const ops::Kernels& kernels) : kernels_(kernels) {}
    // Makes room for granules of such a set; fill() then allocates nothing.
    void reserve(const ExpertBinding& set, const StripLayout& layout);
    // dst: granule_bytes, 64-byte aligned.
    void fill(const ExpertBinding& set, const StripLayout& layout, const ExtentSource& source, int64_t expert, int64_t granule,
              std::byte* dst);

private:
    struct Job {
        const ExpertBinding& set;
        const StripLayout& layout;
        const ExtentSource& source;
        int64_t expert, first;  // first neuron
    };
    void fill_rows(const Job& job, Type type, const std::vector<RowSegment>& segments, std::byte* dst);
    void fill_biases(const Job& job, const std::vector<RowSegment>& segments, std::byte* dst);
    void fill_columns(const Job& job, std::byte* dst);
    const ops::Kernels& kernels_;
    std::vector<std::byte> joined_;
};

}  // namespace moepic
