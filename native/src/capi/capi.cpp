// Version, errors, log, block types.
#include <algorithm>

#include "base/log.h"
#include "base/thread_pool.h"
#include "capi/guard.h"
#include "capi/handles.h"
#include "quant/types.h"

using namespace moepic;

static_assert(MOEPIC_E_ARGUMENT == static_cast<int>(Code::argument) && MOEPIC_E_IO == static_cast<int>(Code::io) &&
              MOEPIC_E_FORMAT == static_cast<int>(Code::format) && MOEPIC_E_UNSUPPORTED == static_cast<int>(Code::unsupported) &&
              MOEPIC_E_NO_MEMORY == static_cast<int>(Code::no_memory) && MOEPIC_E_BUDGET == static_cast<int>(Code::budget) &&
              MOEPIC_E_DEVICE == static_cast<int>(Code::device) && MOEPIC_E_CONTEXT_FULL == static_cast<int>(Code::context_full) &&
              MOEPIC_E_CANCELLED == static_cast<int>(Code::cancelled) && MOEPIC_E_INTERNAL == static_cast<int>(Code::internal));

namespace {

const TypeInfo& need_type(uint32_t id) {
    const TypeInfo* info = find_type(id);
    if (!info) fail(Code::unsupported, "type: block type ", id, " is not known to this build");
    return *info;
}

void need_whole_blocks(const TypeInfo& info, int64_t n) {
    if (n < 0 || n % info.block_len)
        fail(Code::argument, "type: ", n, " weights are not whole blocks of ", info.block_len, " (", info.name, ")");
}

moepic_type describe(const TypeInfo& info) {
    return {static_cast<uint32_t>(info.type), info.name, info.block_len, info.block_bytes, info.encode != nullptr};
}

}  // namespace

int32_t moepic_version(void) {
    return MOEPIC_VERSION_NUMBER;
}

const char* moepic_version_text(void) {
    return MOEPIC_VERSION_TEXT;
}

const char* moepic_last_error(void) {
    return last_error_text();
}

void moepic_log_set(moepic_log_fn sink, void* user) {
    set_log_sink(sink, user);
}

int32_t moepic_type_get(moepic_type* out, uint32_t id) {
    return guard([&] {
        need(out, "out");
        *out = describe(need_type(id));
    });
}

int32_t moepic_type_find(moepic_type* out, const char* name) {
    return guard([&] {
        need(out, "out");
        need(name, "name");
        const TypeInfo* info = find_type_by_name(name);
        if (!info) fail(Code::unsupported, "type: no block type is called '", name, "'");
        *out = describe(*info);
    });
}

int32_t moepic_dequantize(float* out, uint32_t type, const void* blocks, int64_t n) {
    return guard([&] {
        const TypeInfo& info = need_type(type);
        need_whole_blocks(info, n);
        if (n == 0) return;
        need(out, "out");
        need(blocks, "blocks");
        info.decode(static_cast<const std::byte*>(blocks), out, n);
    });
}

int32_t moepic_quantize(void* out, uint32_t type, const float* in, int64_t rows, int64_t cols, const float* importance, int32_t n_threads) {
    return guard([&] {
        const TypeInfo& info = need_type(type);
        if (!info.encode) fail(Code::unsupported, "type: this build has no encoder for ", info.name);
        if (rows < 0) fail(Code::argument, "quantize: rows is ", rows);
        need_whole_blocks(info, cols);
        if (rows == 0 || cols == 0) return;
        need(out, "out");
        need(in, "in");
        const size_t stride = row_bytes(info.type, cols);
        const auto encode_row = [&](int64_t row, int) {
            info.encode(in + row * cols, importance, static_cast<std::byte*>(out) + static_cast<size_t>(row) * stride, cols);
        };
        if (n_threads == 1 || rows == 1) {
            for (int64_t row = 0; row < rows; ++row) encode_row(row, 0);
        } else {
            ThreadPool(n_threads).run(rows, encode_row);
        }
    });
}
