// A GGUF file, or a set of split shards, as named keys and named tensors over mapped bytes.
// Every length is checked against the file before it is used, and nothing is allocated that the file did not pay for in bytes.
// Refuses to know models, devices and quant math: the sizes of block types come in through a TypeLookup.
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moepic::gguf {

enum class ValueType : uint32_t {
    u8 = 0,
    i8 = 1,
    u16 = 2,
    i16 = 3,
    u32 = 4,
    i32 = 5,
    f32 = 6,
    boolean = 7,
    string = 8,
    array = 9,
    u64 = 10,
    i64 = 11,
    f64 = 12,
};
const char* value_type_name(ValueType type) noexcept;

// Block length and bytes of a tensor type; false when the id is unknown (the tensor is then listed with n_bytes = 0, not read).
struct BlockLayout {
    uint32_t block_len;
    uint32_t block_bytes;
};
using TypeLookup = bool (*)(uint32_t type_id, BlockLayout& out);

// One metadata value. Points into the mapped file; valid while the File lives.
class Value {
public:
    ValueType type() const;          // array for arrays
    ValueType element_type() const;  // of an array; type() for scalars
    uint64_t count() const;          // elements of an array, 1 for a scalar

    // Scalars (index 0) and array elements. Empty when the type does not convert without loss of meaning:
    // any integer or bool to i64/u64 when it fits, any number to f64, bool only from bool.
    std::optional<int64_t> as_i64(uint64_t index = 0) const;
    std::optional<uint64_t> as_u64(uint64_t index = 0) const;
    std::optional<double> as_f64(uint64_t index = 0) const;
    std::optional<bool> as_bool(uint64_t index = 0) const;
    std::optional<std::string_view> as_string(uint64_t index = 0) const;

private:
    friend class Parser;
    ValueType type_{};
    ValueType element_type_{};
    uint64_t count_ = 0;
    const std::byte* data_ = nullptr;        // little-endian payload
    std::vector<std::string_view> strings_;  // for strings and arrays of strings
    // Arrays of arrays are accepted and skipped: element_type() is array and every accessor answers empty.
};

struct KeyValue {
    std::string_view key;
    Value value;
};

struct Tensor {
    std::string_view name;
    uint32_t type = 0;  // GGUF type id
    uint32_t n_dims = 0;
    uint64_t ne[4] = {1, 1, 1, 1};    // fastest first, as in the file
    uint64_t n_bytes = 0;             // 0 when the type is unknown
    uint32_t shard = 0;               // index into File::shard_path
    uint64_t file_offset = 0;         // absolute, in that shard
    const std::byte* data = nullptr;  // mapped bytes; null when the type is unknown
};

class File {
public:
    // Opens `path`; when it is one shard of a split (split.count > 1), opens its siblings too (`name-00001-of-0000N.gguf`).
    // Throws Error: io when a file can't be opened or mapped, format when bytes are not what they claim to be.
    static File open(const std::string& path, TypeLookup lookup);
    // The same over bytes in memory (fuzzing and tests); one shard only.
    static File parse(std::span<const std::byte> bytes, const std::string& name, TypeLookup lookup);

    File(File&&) noexcept;
    File& operator=(File&&) noexcept;
    ~File();

    std::span<const KeyValue> keys() const;  // in file order, from the first shard
    const Value* find(std::string_view key) const;
    std::span<const Tensor> tensors() const;  // all shards, in shard and file order
    const Tensor* find_tensor(std::string_view name) const;
    uint64_t alignment() const;
    uint32_t version() const;
    uint32_t shard_count() const;
    const std::string& shard_path(uint32_t index) const;
    uint64_t file_bytes() const;  // all shards
    // Bytes [at, at + to.size()) of a tensor's data, which has that many, read by system calls and not through the mapping: any thread, no
    // page faults, and a file that lost its end since it was opened is an Error(io) instead of the end of the process.
    void read(const Tensor& tensor, uint64_t at, std::span<std::byte> to) const;

private:
    friend class Parser;
    struct Impl;
    std::unique_ptr<Impl> impl_;
    explicit File(std::unique_ptr<Impl> impl);
};

}  // namespace moepic::gguf
