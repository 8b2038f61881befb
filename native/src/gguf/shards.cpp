#include "gguf/shards.h"

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "gguf/text.h"

namespace moepic::gguf {
namespace {

constexpr uint64_t kMaxShards = 65535;  // split.count is a u16

std::optional<uint64_t> read_count(std::span<const KeyValue> keys, std::string_view name, const std::string& file) {
    const Value* value = find_key(keys, name);
    if (!value) return std::nullopt;
    const auto number = value->type() == ValueType::boolean || value->type() == ValueType::array ? std::nullopt : value->as_u64();
    if (!number) {
        fail(Code::format, "gguf: ", file, ": key '", name, "': expected a non-negative integer, found ", value_type_name(value->type()));
    }
    return number;
}

std::string suffix(uint64_t index, uint64_t count) {
    char text[32];
    std::snprintf(text, sizeof text, "-%05u-of-%05u.gguf", static_cast<unsigned>(index + 1), static_cast<unsigned>(count));
    return text;
}

}  // namespace

const Value* find_key(std::span<const KeyValue> keys, std::string_view name) {
    const auto found = std::find_if(keys.begin(), keys.end(), [&](const KeyValue& entry) { return entry.key == name; });
    return found == keys.end() ? nullptr : &found->value;
}

Split read_split(std::span<const KeyValue> keys, const std::string& file) {
    Split split;
    const auto count = read_count(keys, "split.count", file);
    const auto index = read_count(keys, "split.no", file);
    split.total_tensors = read_count(keys, "split.tensors.count", file);
    split.count = std::max<uint64_t>(count.value_or(1), 1);
    split.index = index.value_or(0);
    if (split.count > kMaxShards) {
        fail(Code::format, "gguf: ", file, ": key 'split.count': expected at most ", kMaxShards, " shards, found ", split.count);
    }
    if (split.count > 1 && !index) fail(Code::format, "gguf: ", file, ": key 'split.no' is missing, but split.count is ", split.count);
    if (split.index >= split.count) {
        fail(Code::format, "gguf: ", file, ": key 'split.no': expected below split.count ", split.count, ", found ", split.index);
    }
    if (const Value* architecture = find_key(keys, "general.architecture")) {
        if (const auto text = architecture->as_string()) split.architecture = std::string(*text);
    }
    return split;
}

std::string shard_prefix(const std::string& path, const Split& split) {
    const std::string expected = suffix(split.index, split.count);
    if (!path.ends_with(expected)) {
        fail(Code::format, "gguf: ", path, ": split.no ", split.index, " of split.count ", split.count,
             ": expected a file name that ends in '", expected, "' to find the other shards by (was it renamed?)");
    }
    return path.substr(0, path.size() - expected.size());
}

std::string shard_file(const std::string& prefix, uint64_t index, uint64_t count) {
    return prefix + suffix(index, count);
}

void check_shard(const Split& shard, const std::string& file, uint64_t index, const Split& first, const std::string& first_file) {
    if (shard.count != first.count) {
        fail(Code::format, "gguf: ", file, ": key 'split.count': expected ", first.count, " as in ", first_file, ", found ", shard.count,
             " (shards of different files?)");
    }
    if (shard.index != index) {
        fail(Code::format, "gguf: ", file, ": key 'split.no': expected ", index, " by the file's name, found ", shard.index,
             " (a shard copied or renamed over another?)");
    }
    if (shard.total_tensors && first.total_tensors && *shard.total_tensors != *first.total_tensors) {
        fail(Code::format, "gguf: ", file, ": key 'split.tensors.count': expected ", *first.total_tensors, " as in ", first_file,
             ", found ", *shard.total_tensors, " (shards of different files?)");
    }
    if (shard.architecture && first.architecture && *shard.architecture != *first.architecture) {
        fail(Code::format, "gguf: ", file, ": key 'general.architecture': expected ", quoted(*first.architecture), " as in ", first_file,
             ", found ", quoted(*shard.architecture), " (shards of different files?)");
    }
}

}  // namespace moepic::gguf
