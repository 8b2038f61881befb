// The rules that make several files one: the split.* keys and the names `PREFIX-00001-of-00003.gguf` (llama.cpp's convention).
// Opens nothing; File does.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "gguf/file.h"

namespace moepic::gguf {

const Value* find_key(std::span<const KeyValue> keys, std::string_view name);

// What one shard says of the set it belongs to.
struct Split {
    uint64_t index = 0;                     // split.no, from 0
    uint64_t count = 1;                     // split.count; 1 for a file that is not split
    std::optional<uint64_t> total_tensors;  // split.tensors.count: over all shards
    std::optional<std::string> architecture;
};

// Throws Error(format) when a key has another type or index is not below count.
Split read_split(std::span<const KeyValue> keys, const std::string& file);

// "PREFIX" of a path "PREFIX-00002-of-00003.gguf"; throws Error(format) when the path does not name this shard.
std::string shard_prefix(const std::string& path, const Split& split);
std::string shard_file(const std::string& prefix, uint64_t index, uint64_t count);

// Throws Error(format) when `shard`, read from the file of that index, contradicts the first one.
void check_shard(const Split& shard, const std::string& file, uint64_t index, const Split& first, const std::string& first_file);

}  // namespace moepic::gguf
