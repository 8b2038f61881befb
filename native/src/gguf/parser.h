// One GGUF file's bytes to its keys and tensors. Checks everything that can be checked within one shard; knows no other shard,
// opens nothing, keeps nothing: what it returns points into the bytes.
#pragma once

#include <string_view>
#include <vector>

#include "gguf/cursor.h"
#include "gguf/file.h"

namespace moepic::gguf {

constexpr uint64_t kDefaultAlignment = 32;

struct ParsedShard {
    uint32_t version = 0;
    uint64_t alignment = kDefaultAlignment;
    bool says_alignment = false;  // the file has general.alignment itself
    uint64_t data_end = 0;        // where the last tensor of a known type ends; 0 without any
    std::vector<KeyValue> keys;   // in file order, names unique
    std::vector<Tensor> tensors;  // in file order; names may repeat: File checks them over all shards at once
};

class Parser {
public:
    // `name` is what messages call the file. Both must outlive the parser, and the bytes also what parse() returns.
    // `alignment` holds for a file that does not say its own.
    Parser(std::span<const std::byte> bytes, std::string_view name, TypeLookup lookup, uint64_t alignment = kDefaultAlignment)
        : bytes_(bytes), file_(name), cursor_(bytes, name), lookup_(lookup) {
        out_.alignment = alignment;
    }

    // Throws Error: format, or unsupported for a version or byte order that we do not read.
    // Takes time and memory in proportion to the file's header (times log n for the checks of names and overlaps).
    ParsedShard parse();

private:
    void read_magic();
    void read_version();
    void read_keys(uint64_t count);
    void read_alignment();
    void read_tensor_table(uint64_t count);
    void read_tensor(Tensor& tensor);
    void place_tensors();
    void check_overlaps();

    std::string_view read_name(const char* what);
    ValueType read_value_type(const char* what);
    void read_value(Value& value, ValueType type);
    // Reads an array after its type tag; `out` is null inside an array of arrays, which is only checked and skipped.
    void read_array(Value* out, int depth);
    void check_bools(const std::byte* data, uint64_t count);

    std::span<const std::byte> bytes_;
    std::string_view file_;
    Cursor cursor_;
    TypeLookup lookup_;
    ParsedShard out_;
};

}  // namespace moepic::gguf
