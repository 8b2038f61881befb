// libFuzzer entry point of the GGUF reader: any bytes either parse or are refused with a typed error, and whatever parses can be touched
// everywhere it says it is. Sanitizers catch reads outside the input, which libFuzzer hands over in an allocation of its exact size.
// Knows no block math: three layouts stand for all (one element, 32 and 256 per block); every other type id is unknown.
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "gguf/file.h"
#include "gguf/text.h"

namespace {

using moepic::gguf::BlockLayout;
using moepic::gguf::File;
using moepic::gguf::KeyValue;
using moepic::gguf::Tensor;
using moepic::gguf::Value;

bool lookup(uint32_t type, BlockLayout& out) {
    switch (type) {
        case 0:
            out = {1, 4};
            return true;
        case 2:
            out = {32, 18};
            return true;
        case 8:
            out = {32, 34};
            return true;
        case 12:
            out = {256, 144};
            return true;
        default:
            return false;
    }
}

// A broken promise of the reader. Not assert(): it must hold in optimised builds too.
void expect(bool holds) {
    if (!holds) std::abort();
}

volatile unsigned g_sink = 0;  // keeps the touching reads alive

void touch(const Value& value) {
    unsigned seen = 0;
    for (uint64_t i = 0; i < value.count(); ++i) {
        if (const auto text = value.as_string(i)) {
            if (!text->empty()) seen += static_cast<unsigned char>(text->front()) + static_cast<unsigned char>(text->back());
            continue;
        }
        const auto as_unsigned = value.as_u64(i);
        const auto as_signed = value.as_i64(i);
        if (as_unsigned && as_signed) expect(static_cast<uint64_t>(*as_signed) == *as_unsigned);
        if (as_unsigned) seen += static_cast<unsigned>(*as_unsigned);
        if (as_signed) seen += static_cast<unsigned>(*as_signed);
        if (value.as_f64(i)) ++seen;
        if (value.as_bool(i)) ++seen;
        if (value.element_type() == moepic::gguf::ValueType::array) break;  // every element answers empty
    }
    expect(!value.as_i64(value.count()) && !value.as_u64(value.count()) && !value.as_f64(value.count()));
    expect(!value.as_bool(value.count()) && !value.as_string(value.count()));
    g_sink = g_sink + seen;
}

void touch(const Tensor& tensor, const std::byte* begin, const std::byte* end, uint64_t alignment) {
    BlockLayout layout{};
    expect(lookup(tensor.type, layout) == (tensor.data != nullptr));
    expect((tensor.data != nullptr) == (tensor.n_bytes != 0));
    expect(tensor.n_dims >= 1 && tensor.n_dims <= 4 && tensor.file_offset % alignment == 0);
    if (!tensor.data) return;
    expect(tensor.data == begin + tensor.file_offset && tensor.n_bytes <= static_cast<uint64_t>(end - tensor.data));
    uint64_t blocks = 1;
    for (uint64_t n : tensor.ne) blocks *= n;
    expect(tensor.ne[0] % layout.block_len == 0 && blocks / layout.block_len * layout.block_bytes == tensor.n_bytes);
    g_sink = g_sink + std::to_integer<unsigned>(tensor.data[0]) + std::to_integer<unsigned>(tensor.data[tensor.n_bytes - 1]);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const auto* begin = reinterpret_cast<const std::byte*>(data);
    try {
        const File file = File::parse({begin, size}, "fuzz.gguf", lookup);
        expect(file.file_bytes() == size && file.shard_count() == 1);
        for (const KeyValue& entry : file.keys()) {
            touch(entry.value);
            expect(file.find(entry.key) == &entry.value);
        }
        for (const Tensor& tensor : file.tensors()) {
            touch(tensor, begin, begin + size, file.alignment());
            expect(file.find_tensor(tensor.name) == &tensor);
            std::byte ends[2]{};
            if (tensor.n_bytes == 0) continue;
            file.read(tensor, 0, {ends, 1});
            file.read(tensor, tensor.n_bytes - 1, {ends + 1, 1});
            expect(ends[0] == tensor.data[0] && ends[1] == tensor.data[tensor.n_bytes - 1]);
        }
    } catch (const moepic::Error& error) {
        expect(error.code() == moepic::Code::format || error.code() == moepic::Code::unsupported);
        expect(moepic::gguf::is_utf8(error.text()) && error.text().size() < 1000 && error.text().starts_with("gguf: fuzz.gguf: "));
    }
    return 0;
}
