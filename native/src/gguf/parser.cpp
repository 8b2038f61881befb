#include "gguf/parser.h"

#include <algorithm>
#include <limits>

#include "gguf/name_index.h"

namespace moepic::gguf {
namespace {

// Smallest encodings, to bound what a count may claim.
constexpr uint64_t kMinString = 8;                               // length
constexpr uint64_t kMinArray = 4 + 8;                            // element type, count
constexpr uint64_t kMinKey = kMinString + 1 + 4 + 1;             // name of one byte, type, one-byte value
constexpr uint64_t kMinTensor = kMinString + 1 + 4 + 8 + 4 + 8;  // name, n_dims, one dim, type, offset

constexpr uint64_t kMaxName = 65535;                   // the format's limit for keys
constexpr uint64_t kMinAlignment = 8;                  // the format asks for a multiple of 8
constexpr uint64_t kMaxAlignment = uint64_t{1} << 26;  // 64 MiB: far above any page or device block
constexpr int kMaxArrayDepth = 8;

// Room for `count` items, but no more than a real file needs at once: beyond it a vector grows as items are really read, so that a false
// count in a file of many gigabytes reserves nothing to speak of.
template <class Items>
void reserve_modestly(Items& items, uint64_t count) {
    items.reserve(std::min<uint64_t>(count, 4096));
}

// Bytes of one value; 0 for strings and arrays, whose length is in the file.
uint64_t scalar_bytes(ValueType type) noexcept {
    switch (type) {
        case ValueType::u8:
        case ValueType::i8:
        case ValueType::boolean:
            return 1;
        case ValueType::u16:
        case ValueType::i16:
            return 2;
        case ValueType::u32:
        case ValueType::i32:
        case ValueType::f32:
            return 4;
        case ValueType::u64:
        case ValueType::i64:
        case ValueType::f64:
            return 8;
        case ValueType::string:
        case ValueType::array:
            break;
    }
    return 0;
}

std::string dims_text(const Tensor& tensor) {
    std::string text = "[";
    for (uint32_t i = 0; i < tensor.n_dims; ++i) text += cat(i ? ", " : "", tensor.ne[i]);
    return text + "]";
}

}  // namespace

ParsedShard Parser::parse() {
    read_magic();
    read_version();
    const auto n_tensors = cursor_.read<uint64_t>("tensor count");
    const auto n_keys = cursor_.read<uint64_t>("key count");
    cursor_.expect_room(n_tensors, kMinTensor, "tensors");
    cursor_.expect_room(n_keys, kMinKey, "keys");
    read_keys(n_keys);
    read_alignment();
    read_tensor_table(n_tensors);
    place_tensors();
    check_overlaps();
    return std::move(out_);
}

void Parser::read_magic() {
    static constexpr char kMagic[4] = {'G', 'G', 'U', 'F'};
    if (bytes_.empty()) fail(Code::format, "gguf: ", file_, ": the file is empty, expected GGUF (a download that did not start?)");
    const size_t there = std::min<size_t>(bytes_.size(), 4);
    if (std::memcmp(bytes_.data(), kMagic, there) != 0) {
        fail(Code::format, "gguf: ", file_, ": not a GGUF file: expected 'GGUF' at byte 0, found ", looks_like(bytes_));
    }
    cursor_.take(4, "magic");
}

void Parser::read_version() {
    out_.version = cursor_.read<uint32_t>("version");
    if (out_.version == 2 || out_.version == 3) return;
    if (out_.version == 1) {
        fail(Code::unsupported, "gguf: ", file_,
             ": version 1 at byte 4, expected 2 or 3 (an early file with 32-bit lengths: download or convert a newer one)");
    }
    if ((out_.version & 0xffff) == 0 && out_.version != 0) {
        fail(Code::unsupported, "gguf: ", file_, ": big-endian: version ", __builtin_bswap32(out_.version),
             " is stored high byte first at byte 4 (convert it to little-endian, or download that one)");
    }
    if (out_.version == 0) cursor_.damaged("version 0 at byte 4, expected 2 or 3 (damaged file?)");
    fail(Code::unsupported, "gguf: ", file_, ": version ", out_.version,
         " at byte 4, this build reads 2 and 3 (a newer file needs a newer build)");
}

std::string_view Parser::read_name(const char* what) {
    const uint64_t at = cursor_.at();
    const std::string_view name = cursor_.string(what);
    if (name.empty()) cursor_.damaged(what, " at byte ", at, " is empty");
    if (name.size() > kMaxName) cursor_.damaged(what, " at byte ", at, ": expected at most ", kMaxName, " bytes, found ", name.size());
    if (!is_utf8(name)) cursor_.damaged(what, " at byte ", at, ": expected UTF-8, found ", quoted(name));
    if (name.find('\0') != std::string_view::npos) cursor_.damaged(what, " at byte ", at, " holds a NUL byte: ", quoted(name));
    return name;
}

ValueType Parser::read_value_type(const char* what) {
    const uint64_t at = cursor_.at();
    const auto type = cursor_.read<uint32_t>(what);
    if (type > static_cast<uint32_t>(ValueType::f64)) {
        cursor_.damaged(what, " at byte ", at, ": expected 0 to 12, found ", type, " (damaged, or a newer format)");
    }
    return static_cast<ValueType>(type);
}

void Parser::check_bools(const std::byte* data, uint64_t count) {
    const auto* bad = std::find_if(data, data + count, [](std::byte b) { return b > std::byte{1}; });
    if (bad != data + count) {
        cursor_.damaged("bool at byte ", bad - bytes_.data(), ": expected 0 or 1, found ", std::to_integer<int>(*bad), " (damaged file?)");
    }
}

void Parser::read_value(Value& value, ValueType type) {
    value.type_ = value.element_type_ = type;
    value.count_ = 1;
    if (type == ValueType::string) {
        value.strings_.assign(1, cursor_.string("string"));
    } else if (type == ValueType::array) {
        read_array(&value, 1);
    } else {
        value.data_ = cursor_.take(scalar_bytes(type), "value");
        if (type == ValueType::boolean) check_bools(value.data_, 1);
    }
}

void Parser::read_array(Value* out, int depth) {
    const ValueType element = read_value_type("array element type");
    const auto count = cursor_.read<uint64_t>("array count");
    if (out) {
        out->element_type_ = element;
        out->count_ = count;
    }
    if (element == ValueType::array) {
        if (depth == kMaxArrayDepth) cursor_.damaged("arrays nested deeper than ", kMaxArrayDepth, " at byte ", cursor_.at());
        cursor_.expect_room(count, kMinArray, "nested arrays");
        for (uint64_t i = 0; i < count; ++i) read_array(nullptr, depth + 1);
    } else if (element == ValueType::string) {
        cursor_.expect_room(count, kMinString, "strings");
        if (out) reserve_modestly(out->strings_, count);
        for (uint64_t i = 0; i < count; ++i) {
            const std::string_view text = cursor_.string("string of an array");
            if (out) out->strings_.push_back(text);
        }
    } else {
        cursor_.expect_room(count, scalar_bytes(element), "array elements");
        const std::byte* data = cursor_.take(count * scalar_bytes(element), "array");
        if (out) out->data_ = data;
        if (element == ValueType::boolean) check_bools(data, count);
    }
}

void Parser::read_keys(uint64_t count) {
    reserve_modestly(out_.keys, count);
    for (uint64_t i = 0; i < count; ++i) {
        cursor_.enter("key", i);
        KeyValue& entry = out_.keys.emplace_back();
        entry.key = read_name("name");
        cursor_.name(entry.key);
        read_value(entry.value, read_value_type("value type"));
    }
    NameIndex names;
    names.build(out_.keys, [](const KeyValue& entry) { return entry.key; });
    if (const auto twins = names.duplicate()) {
        cursor_.enter("key", out_.keys[twins->first].key);
        cursor_.damaged("appears twice, as key ", twins->first, " and key ", twins->second, ", expected once");
    }
}

void Parser::read_alignment() {
    const auto entry = std::find_if(out_.keys.begin(), out_.keys.end(), [](const KeyValue& e) { return e.key == "general.alignment"; });
    if (entry == out_.keys.end()) return;
    cursor_.enter("key", entry->key);
    const auto alignment = entry->value.type() == ValueType::boolean ? std::nullopt : entry->value.as_u64();
    if (!alignment || entry->value.type() == ValueType::array) {
        cursor_.damaged("expected a u32, found ", value_type_name(entry->value.type()), " (negative, or not an integer)");
    }
    if (*alignment < kMinAlignment || *alignment > kMaxAlignment || (*alignment & (*alignment - 1)) != 0) {
        cursor_.damaged("expected a power of two from ", kMinAlignment, " to ", kMaxAlignment, ", found ", *alignment);
    }
    out_.alignment = *alignment;
    out_.says_alignment = true;
}

void Parser::read_tensor_table(uint64_t count) {
    cursor_.enter("tensor table");
    cursor_.expect_room(count, kMinTensor, "tensors");
    reserve_modestly(out_.tensors, count);
    for (uint64_t i = 0; i < count; ++i) {
        cursor_.enter("tensor", i);
        read_tensor(out_.tensors.emplace_back());
    }
}

void Parser::read_tensor(Tensor& tensor) {
    tensor.name = read_name("name");
    cursor_.name(tensor.name);
    const uint64_t at = cursor_.at();
    tensor.n_dims = cursor_.read<uint32_t>("number of dimensions");
    if (tensor.n_dims < 1 || tensor.n_dims > 4) {
        cursor_.damaged("number of dimensions at byte ", at, ": expected 1 to 4, found ", tensor.n_dims);
    }
    for (uint32_t i = 0; i < tensor.n_dims; ++i) tensor.ne[i] = cursor_.read<uint64_t>("dimension");
    uint64_t elements = 1;
    for (uint32_t i = 0; i < tensor.n_dims; ++i) {
        if (tensor.ne[i] == 0) cursor_.damaged("dimension ", i, " of ", dims_text(tensor), " is 0, expected at least 1");
        if (__builtin_mul_overflow(elements, tensor.ne[i], &elements) || elements > uint64_t{std::numeric_limits<int64_t>::max()}) {
            cursor_.damaged("dimensions ", dims_text(tensor), " at byte ", at + 4, " multiply to more than 2^63 - 1 elements");
        }
    }
    tensor.type = cursor_.read<uint32_t>("type");
    tensor.file_offset = cursor_.read<uint64_t>("offset");  // from the data's start, which is known only after the table

    BlockLayout layout{};
    if (!lookup_(tensor.type, layout) || layout.block_len == 0 || layout.block_bytes == 0) return;  // unknown: listed with n_bytes = 0
    if (tensor.ne[0] % layout.block_len != 0) {
        cursor_.damaged("row length ", tensor.ne[0], " of ", dims_text(tensor), " is not a multiple of ", layout.block_len,
                        ", the block length of type ", tensor.type);
    }
    if (__builtin_mul_overflow(elements / layout.block_len, uint64_t{layout.block_bytes}, &tensor.n_bytes)) {
        cursor_.damaged("dimensions ", dims_text(tensor), " of type ", tensor.type, " need more than 2^64 bytes");
    }
}

// Offsets count from the first aligned byte after the table.
void Parser::place_tensors() {
    if (out_.tensors.empty()) return;  // then nothing says that the padding must exist
    const uint64_t table_end = cursor_.at();
    const uint64_t start = (table_end + out_.alignment - 1) & ~(out_.alignment - 1);
    const uint64_t size = bytes_.size();
    for (Tensor& tensor : out_.tensors) {
        cursor_.enter("tensor", tensor.name);
        const uint64_t offset = tensor.file_offset;
        if (offset % out_.alignment != 0) {
            cursor_.damaged("offset ", offset, " is not a multiple of the alignment ", out_.alignment, " (damaged table?)");
        }
        if (start > size || offset > size - start) {
            cursor_.damaged("begins ", offset, " bytes after byte ", start, ", but the file has ", size, " bytes (truncated download?)");
        }
        tensor.file_offset = start + offset;
        if (tensor.n_bytes > size - tensor.file_offset) {
            // The sum can't wrap into nonsense for a person: it is printed as start and length when it would.
            uint64_t end = 0;
            if (__builtin_add_overflow(tensor.file_offset, tensor.n_bytes, &end)) {
                cursor_.damaged("begins at byte ", tensor.file_offset, " and has ", tensor.n_bytes, " bytes, file has ", size);
            }
            cursor_.damaged("ends at byte ", end, ", file has ", size, " (truncated download?)");
        }
        if (tensor.n_bytes == 0) continue;
        tensor.data = bytes_.data() + tensor.file_offset;
        out_.data_end = std::max(out_.data_end, tensor.file_offset + tensor.n_bytes);
    }
}

void Parser::check_overlaps() {
    std::vector<const Tensor*> order;
    order.reserve(out_.tensors.size());
    for (const Tensor& tensor : out_.tensors)
        if (tensor.data) order.push_back(&tensor);
    std::sort(order.begin(), order.end(),
              [](const Tensor* a, const Tensor* b) { return a->file_offset != b->file_offset ? a->file_offset < b->file_offset : a < b; });
    for (size_t i = 1; i < order.size(); ++i) {
        const Tensor& before = *order[i - 1];
        const Tensor& after = *order[i];
        if (before.file_offset + before.n_bytes > after.file_offset) {
            cursor_.enter("tensor", after.name);
            cursor_.damaged("begins at byte ", after.file_offset, ", inside ", quoted(before.name), ", which ends at byte ",
                            before.file_offset + before.n_bytes, " (damaged table?)");
        }
    }
}

}  // namespace moepic::gguf
