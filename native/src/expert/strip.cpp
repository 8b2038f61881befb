#include "expert/strip.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace moepic {
namespace {

// Rows [from, to) of an expert as the tensor of a segment has them.
Extent rows_of(const RowSegment& s, size_t stride, int64_t expert, int64_t from, int64_t to) noexcept {
    return {s.tensor, static_cast<uint64_t>(expert * s.tensor_rows + s.skip + from - s.first) * stride,
            static_cast<uint64_t>(to - from) * stride};
}

Extent biases_of(const RowSegment& s, int64_t expert, int64_t from, int64_t to) noexcept {
    Extent extent = rows_of(s, sizeof(float), expert, from, to);
    extent.tensor = s.bias;
    return extent;
}

// Matrices [first, last] of the file's granules of one expert in a segment of down.
Extent matrices_of(const ColumnSegment& s, Type type, int64_t n_embd, int64_t expert, int64_t first, int64_t last) noexcept {
    const uint64_t matrix = static_cast<uint64_t>(n_embd) * row_bytes(type, s.file_granule);
    return {s.tensor, static_cast<uint64_t>(expert * (s.count / s.file_granule) + first) * matrix,
            static_cast<uint64_t>(last - first + 1) * matrix};
}

// Calls visit(segment, from, to) for the part of every segment that lies in [first, last).
template <class Segment, class Visit>
void each_part(const std::vector<Segment>& segments, int64_t first, int64_t last, Visit visit) {
    for (const Segment& s : segments) {
        const int64_t from = std::max(first, s.first), to = std::min(last, s.first + s.count);
        if (from < to) visit(s, from, to);
    }
}

}  // namespace

StripLayout make_strip_layout(const ExpertBinding& set, int64_t granule) {
    StripLayout layout;
    layout.n_embd = set.n_embd;
    layout.n_ff = set.n_ff;
    layout.granule = granule;
    layout.n_granules = set.n_ff / granule;
    layout.gate_type = set.gate_type;
    layout.up_type = set.up_type;
    layout.down_type = set.down_type;
    layout.up_offset = ops::tiled_bytes(set.gate_type, granule, set.n_embd);
    layout.down_offset = layout.up_offset + ops::tiled_bytes(set.up_type, granule, set.n_embd);
    layout.granule_bytes = layout.down_offset + ops::tiled_bytes(set.down_type, set.n_embd, granule);
    if (set.gate[0].bias) {
        const size_t bytes = ops::tiled_bytes(Type::f32, granule, 1);  // rounded up to 64, so that the next granule is aligned
        layout.gate_bias_offset = layout.granule_bytes;
        layout.up_bias_offset = layout.gate_bias_offset + bytes;
        layout.granule_bytes = layout.up_bias_offset + bytes;
    }
    return layout;
}

void list_extents(const ExpertBinding& set, const StripLayout& layout, int64_t expert, GranuleRun run, std::vector<Extent>& out) {
    const int64_t first = run.first * layout.granule, last = first + run.count * layout.granule;
    const auto rows = [&](Type type, const std::vector<RowSegment>& segments) {
        each_part(segments, first, last, [&](const RowSegment& s, int64_t from, int64_t to) {
            out.push_back(rows_of(s, row_bytes(type, layout.n_embd), expert, from, to));
            if (s.bias) out.push_back(biases_of(s, expert, from, to));
        });
    };
    rows(layout.gate_type, set.gate);
    rows(layout.up_type, set.up);
    each_part(set.down, first, last, [&](const ColumnSegment& s, int64_t from, int64_t to) {
        out.push_back(matrices_of(s, layout.down_type, layout.n_embd, expert, (from - s.first) / s.file_granule,
                                  (to - 1 - s.first) / s.file_granule));
    });
}

GranuleRun read_unit(const ExpertBinding& set, const StripLayout& layout, int64_t granule) {
    // A cut is clean where no matrix of down has columns on both sides.
    const auto is_clean = [&](int64_t cut) {
        const int64_t neuron = cut * layout.granule;
        return std::all_of(set.down.begin(), set.down.end(), [&](const ColumnSegment& s) {
            return neuron <= s.first || neuron >= s.first + s.count || (neuron - s.first) % s.file_granule == 0;
        });
    };
    int64_t first = granule, last = granule + 1;
    while (first > 0 && !is_clean(first)) --first;
    while (last < layout.n_granules && !is_clean(last)) ++last;
    return {first, last - first};
}

const std::byte* FetchedSource::find(const Extent& wanted) const noexcept {
    for (size_t i = 0; i < extents_.size(); ++i) {
        const Extent& held = extents_[i];
        if (held.tensor == wanted.tensor && wanted.at >= held.at && wanted.at + wanted.bytes <= held.at + held.bytes)
            return pieces_[i] + (wanted.at - held.at);
    }
    assert(false && "a filler asked for bytes that list_extents did not name");
    return nullptr;
}

bool has_whole_granules(const ExpertBinding& set, const StripLayout& layout) noexcept {
    const int64_t granule = layout.granule;
    const auto rows_fit = [&](const RowSegment& s) { return s.first % granule == 0 && s.count % granule == 0; };
    const auto columns_fit = [&](const ColumnSegment& s) { return s.first % granule == 0 && s.file_granule % granule == 0; };
    return std::all_of(set.gate.begin(), set.gate.end(), rows_fit) && std::all_of(set.up.begin(), set.up.end(), rows_fit) &&
           std::all_of(set.down.begin(), set.down.end(), columns_fit);
}

void list_matrices(const ExpertBinding& set, const StripLayout& layout, int64_t expert, std::byte* strip, std::vector<FileMatrix>& out) {
    const int64_t granule = layout.granule;
    const auto granule_at = [&](int64_t neuron) { return strip + static_cast<size_t>(neuron / granule) * layout.granule_bytes; };
    const auto rows = [&](Type type, const std::vector<RowSegment>& segments, size_t offset, size_t bias_offset) {
        for (const RowSegment& s : segments) {
            for (int64_t from = s.first; from < s.first + s.count; from += granule) {
                const Extent extent = rows_of(s, row_bytes(type, layout.n_embd), expert, from, from + granule);
                out.push_back({extent.tensor, extent.at, type, granule, layout.n_embd, granule_at(from) + offset});
                if (!s.bias) continue;
                const Extent biases = biases_of(s, expert, from, from + granule);  // tiles of one column of floats are those floats
                out.push_back({biases.tensor, biases.at, Type::f32, granule, 1, granule_at(from) + bias_offset});
            }
        }
    };
    rows(layout.gate_type, set.gate, 0, layout.gate_bias_offset);
    rows(layout.up_type, set.up, layout.up_offset, layout.up_bias_offset);
    for (const ColumnSegment& s : set.down) {
        for (int64_t matrix = 0; matrix < s.count / s.file_granule; ++matrix) {
            const Extent extent = matrices_of(s, layout.down_type, layout.n_embd, expert, matrix, matrix);
            out.push_back({extent.tensor, extent.at, layout.down_type, layout.n_embd, granule,
                           granule_at(s.first + matrix * s.file_granule) + layout.down_offset, s.file_granule / granule,
                           layout.granule_bytes});
        }
    }
}

void StripFiller::reserve(const ExpertBinding& set, const StripLayout& layout) {
    const size_t rows =
        static_cast<size_t>(layout.granule) * std::max(row_bytes(set.gate_type, set.n_embd), row_bytes(set.up_type, set.n_embd));
    const size_t columns = static_cast<size_t>(set.n_embd) * row_bytes(set.down_type, layout.granule);
    joined_.resize(std::max({joined_.size(), rows, columns}));
}

void StripFiller::fill(const ExpertBinding& set, const StripLayout& layout, const ExtentSource& source, int64_t expert, int64_t granule,
                       std::byte* dst) {
    const Job job{set, layout, source, expert, granule * layout.granule};
    fill_rows(job, layout.gate_type, set.gate, dst);
    fill_rows(job, layout.up_type, set.up, dst + layout.up_offset);
    fill_columns(job, dst + layout.down_offset);
    if (layout.gate_bias_offset) {
        fill_biases(job, set.gate, dst + layout.gate_bias_offset);
        fill_biases(job, set.up, dst + layout.up_bias_offset);
    }
}

void StripFiller::fill_biases(const Job& job, const std::vector<RowSegment>& segments, std::byte* dst) {
    each_part(segments, job.first, job.first + job.layout.granule, [&](const RowSegment& s, int64_t from, int64_t to) {
        const Extent extent = biases_of(s, job.expert, from, to);
        std::memcpy(dst + static_cast<size_t>(from - job.first) * sizeof(float), job.source.find(extent), extent.bytes);
    });
}

void StripFiller::fill_rows(const Job& job, Type type, const std::vector<RowSegment>& segments, std::byte* dst) {
    const StripLayout& layout = job.layout;
    const size_t stride = row_bytes(type, layout.n_embd);
    const int64_t last = job.first + layout.granule;
    for (const RowSegment& s : segments) {
        if (job.first >= s.first && last <= s.first + s.count) {
            const std::byte* rows = job.source.find(rows_of(s, stride, job.expert, job.first, last));
            kernels_.tile_rows(type, rows, stride, layout.granule, layout.n_embd, dst, ops::TileStores::cached);
            return;
        }
    }
    each_part(segments, job.first, last, [&](const RowSegment& s, int64_t from, int64_t to) {
        const Extent extent = rows_of(s, stride, job.expert, from, to);
        std::memcpy(joined_.data() + static_cast<size_t>(from - job.first) * stride, job.source.find(extent), extent.bytes);
    });
    kernels_.tile_rows(type, joined_.data(), stride, layout.granule, layout.n_embd, dst, ops::TileStores::cached);
}

void StripFiller::fill_columns(const Job& job, std::byte* dst) {
    const StripLayout& layout = job.layout;
    const Type type = layout.down_type;
    const int64_t n_embd = layout.n_embd, first = job.first, last = first + layout.granule;
    // Where column `column` of row 0 lies: the file's granule it is in, then its place in that granule's rows.
    const auto columns_at = [&](const ColumnSegment& s, int64_t column) {
        const int64_t in = column - s.first, matrix = in / s.file_granule;
        return job.source.find(matrices_of(s, type, n_embd, job.expert, matrix, matrix)) + row_bytes(type, in % s.file_granule);
    };
    for (const ColumnSegment& s : job.set.down) {
        if (first < s.first || last > s.first + s.count) continue;
        const int64_t in = first - s.first;
        if (in / s.file_granule == (in + layout.granule - 1) / s.file_granule) {
            kernels_.tile_rows(type, columns_at(s, first), row_bytes(type, s.file_granule), n_embd, layout.granule, dst,
                               ops::TileStores::cached);
            return;
        }
    }
    const size_t stride = row_bytes(type, layout.granule);
    for (int64_t column = first; column < last;) {
        const auto s = std::find_if(job.set.down.begin(), job.set.down.end(),
                                    [&](const ColumnSegment& c) { return column >= c.first && column < c.first + c.count; });
        assert(s != job.set.down.end());
        const int64_t in = column - s->first;
        const int64_t run = std::min(last - column, s->file_granule - in % s->file_granule);
        const std::byte* src = columns_at(*s, column);
        std::byte* out = joined_.data() + row_bytes(type, column - first);
        for (int64_t row = 0; row < n_embd; ++row) {
            std::memcpy(out + static_cast<size_t>(row) * stride, src + static_cast<size_t>(row) * row_bytes(type, s->file_granule),
                        row_bytes(type, run));
        }
        column += run;
    }
    kernels_.tile_rows(type, joined_.data(), stride, n_embd, layout.granule, dst, ops::TileStores::cached);
}

}  // namespace moepic
