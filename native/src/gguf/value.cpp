// What one metadata value converts to. No conversion that changes the meaning: a float is never an integer, a bool is a number only
// where an integer is asked for, and an integer that does not fit is no answer.
#include <cstring>
#include <limits>

#include "gguf/file.h"

namespace moepic::gguf {
namespace {

template <class T>
T load(const std::byte* data, uint64_t index) {
    T value;
    std::memcpy(&value, data + index * sizeof(T), sizeof(T));
    return value;
}

}  // namespace

const char* value_type_name(ValueType type) noexcept {
    static constexpr const char* names[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
    const auto id = static_cast<uint32_t>(type);
    return id < std::size(names) ? names[id] : "unknown";
}

ValueType Value::type() const {
    return type_;
}
ValueType Value::element_type() const {
    return element_type_;
}
uint64_t Value::count() const {
    return count_;
}

std::optional<int64_t> Value::as_i64(uint64_t index) const {
    if (index >= count_) return std::nullopt;
    switch (element_type_) {
        case ValueType::u8:
        case ValueType::boolean:
            return load<uint8_t>(data_, index);
        case ValueType::i8:
            return load<int8_t>(data_, index);
        case ValueType::u16:
            return load<uint16_t>(data_, index);
        case ValueType::i16:
            return load<int16_t>(data_, index);
        case ValueType::u32:
            return load<uint32_t>(data_, index);
        case ValueType::i32:
            return load<int32_t>(data_, index);
        case ValueType::i64:
            return load<int64_t>(data_, index);
        case ValueType::u64: {
            const auto value = load<uint64_t>(data_, index);
            if (value > uint64_t{std::numeric_limits<int64_t>::max()}) return std::nullopt;
            return static_cast<int64_t>(value);
        }
        case ValueType::f32:
        case ValueType::f64:
        case ValueType::string:
        case ValueType::array:
            break;
    }
    return std::nullopt;
}

std::optional<uint64_t> Value::as_u64(uint64_t index) const {
    if (index < count_ && element_type_ == ValueType::u64) return load<uint64_t>(data_, index);
    const auto value = as_i64(index);
    if (!value || *value < 0) return std::nullopt;
    return static_cast<uint64_t>(*value);
}

std::optional<double> Value::as_f64(uint64_t index) const {
    if (index >= count_) return std::nullopt;
    switch (element_type_) {
        case ValueType::f32:
            return load<float>(data_, index);
        case ValueType::f64:
            return load<double>(data_, index);
        case ValueType::u64:
            return static_cast<double>(load<uint64_t>(data_, index));
        case ValueType::boolean:
            return std::nullopt;
        default:
            break;
    }
    const auto value = as_i64(index);
    if (!value) return std::nullopt;
    return static_cast<double>(*value);
}

std::optional<bool> Value::as_bool(uint64_t index) const {
    if (index >= count_ || element_type_ != ValueType::boolean) return std::nullopt;
    return load<uint8_t>(data_, index) != 0;
}

std::optional<std::string_view> Value::as_string(uint64_t index) const {
    if (index >= strings_.size()) return std::nullopt;
    return strings_[index];
}

}  // namespace moepic::gguf
