// Metadata keys with the architecture's prefix, read with a type and a default. Each failure names the key and what was found.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/file.h"

namespace moepic {

class Keys {
public:
    Keys(const gguf::File& file, std::string_view arch) : file_(file), prefix_(std::string(arch) + ".") {}

    // `name` without the prefix, e.g. "attention.head_count". Values must lie in [low, high].
    int64_t integer(std::string_view name, int64_t low, int64_t high) const;
    int64_t integer_or(std::string_view name, int64_t fallback, int64_t low, int64_t high) const;
    // One value per layer: an array of n, or one scalar for all.
    std::vector<int64_t> integers(std::string_view name, int64_t n, int64_t low, int64_t high) const;
    double number(std::string_view name) const;
    double number_or(std::string_view name, double fallback) const;
    std::optional<bool> boolean(std::string_view name) const;
    std::string text_or(std::string_view name, std::string_view fallback) const;
    bool has(std::string_view name) const { return find(name) != nullptr; }
    bool is_array(std::string_view name) const { return need(name).type() == gguf::ValueType::array; }

private:
    const gguf::Value* find(std::string_view name) const;
    const gguf::Value& need(std::string_view name) const;
    const gguf::File& file_;
    std::string prefix_;
};

}  // namespace moepic
