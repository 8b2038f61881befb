#include "expert/strip.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace moepic {

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

StripFiller::StripFiller(const ops::Kernels& kernels, const ExpertBinding& set, const StripLayout& layout)
    : kernels_(kernels), set_(set), layout_(layout) {
    const size_t rows =
        static_cast<size_t>(layout.granule) * std::max(row_bytes(set.gate_type, set.n_embd), row_bytes(set.up_type, set.n_embd));
    const size_t columns = static_cast<size_t>(set.n_embd) * row_bytes(set.down_type, layout.granule);
    joined_.resize(std::max(rows, columns));
}

void StripFiller::fill(int64_t expert, int64_t granule, std::byte* dst) {
    const int64_t first = granule * layout_.granule;
    fill_rows(layout_.gate_type, set_.gate, expert, first, dst);
    fill_rows(layout_.up_type, set_.up, expert, first, dst + layout_.up_offset);
    fill_columns(expert, first, dst + layout_.down_offset);
    if (layout_.gate_bias_offset) {
        fill_biases(set_.gate, expert, first, dst + layout_.gate_bias_offset);
        fill_biases(set_.up, expert, first, dst + layout_.up_bias_offset);
    }
}

void StripFiller::fill_biases(const std::vector<RowSegment>& segments, int64_t expert, int64_t first, std::byte* dst) {
    for (const RowSegment& s : segments) {
        const int64_t from = std::max(first, s.first), to = std::min(first + layout_.granule, s.first + s.count);
        if (from >= to) continue;
        const size_t at = static_cast<size_t>(expert * s.tensor_rows + s.skip + from - s.first);
        std::memcpy(dst + static_cast<size_t>(from - first) * sizeof(float), s.bias->data + at * sizeof(float),
                    static_cast<size_t>(to - from) * sizeof(float));
    }
}

void StripFiller::fill_rows(Type type, const std::vector<RowSegment>& segments, int64_t expert, int64_t first, std::byte* dst) {
    const size_t stride = row_bytes(type, layout_.n_embd);
    const int64_t last = first + layout_.granule;
    const auto rows_at = [&](const RowSegment& s, int64_t row) {
        return s.tensor->data + static_cast<size_t>(expert * s.tensor_rows + s.skip + row - s.first) * stride;
    };
    for (const RowSegment& s : segments) {
        if (first >= s.first && last <= s.first + s.count) {
            kernels_.tile_rows(type, rows_at(s, first), stride, layout_.granule, layout_.n_embd, dst);
            return;
        }
    }
    for (const RowSegment& s : segments) {
        const int64_t from = std::max(first, s.first), to = std::min(last, s.first + s.count);
        if (from >= to) continue;
        std::memcpy(joined_.data() + static_cast<size_t>(from - first) * stride, rows_at(s, from), static_cast<size_t>(to - from) * stride);
    }
    kernels_.tile_rows(type, joined_.data(), stride, layout_.granule, layout_.n_embd, dst);
}

void StripFiller::fill_columns(int64_t expert, int64_t first, std::byte* dst) {
    const Type type = layout_.down_type;
    const int64_t n_embd = layout_.n_embd, last = first + layout_.granule;
    // Where column `column` of row 0 lies: the file's granule it is in, then its place in that granule's rows.
    const auto columns_at = [&](const ColumnSegment& s, int64_t column) {
        const int64_t in = column - s.first;
        const int64_t matrix = expert * (s.count / s.file_granule) + in / s.file_granule;
        return s.tensor->data + static_cast<size_t>(matrix * n_embd) * row_bytes(type, s.file_granule) +
               row_bytes(type, in % s.file_granule);
    };
    for (const ColumnSegment& s : set_.down) {
        if (first < s.first || last > s.first + s.count) continue;
        const int64_t in = first - s.first;
        if (in / s.file_granule == (in + layout_.granule - 1) / s.file_granule) {
            kernels_.tile_rows(type, columns_at(s, first), row_bytes(type, s.file_granule), n_embd, layout_.granule, dst);
            return;
        }
    }
    const size_t stride = row_bytes(type, layout_.granule);
    for (int64_t column = first; column < last;) {
        const auto s = std::find_if(set_.down.begin(), set_.down.end(),
                                    [&](const ColumnSegment& c) { return column >= c.first && column < c.first + c.count; });
        assert(s != set_.down.end());
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
    kernels_.tile_rows(type, joined_.data(), stride, n_embd, layout_.granule, dst);
}

}  // namespace moepic
