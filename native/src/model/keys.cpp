#include "model/keys.h"

#include <cmath>

#include "base/error.h"

namespace moepic {

const gguf::Value* Keys::find(std::string_view name) const {
    return file_.find(prefix_ + std::string(name));
}

const gguf::Value& Keys::need(std::string_view name) const {
    const gguf::Value* value = find(name);
    if (!value) fail(Code::format, "model: key '", prefix_, name, "' is missing (a file from an old or foreign converter? convert again)");
    return *value;
}

int64_t Keys::integer(std::string_view name, int64_t low, int64_t high) const {
    return integers(name, 1, low, high)[0];
}

int64_t Keys::integer_or(std::string_view name, int64_t fallback, int64_t low, int64_t high) const {
    return find(name) ? integer(name, low, high) : fallback;
}

std::vector<int64_t> Keys::integers(std::string_view name, int64_t n, int64_t low, int64_t high) const {
    const gguf::Value& value = need(name);
    const bool array = value.type() == gguf::ValueType::array;
    if (array && value.count() < static_cast<uint64_t>(n)) {
        fail(Code::format, "model: key '", prefix_, name, "' has ", value.count(), " values, expected one or ", n, " (one per layer)");
    }
    std::vector<int64_t> out(static_cast<size_t>(n));
    for (size_t i = 0; i < out.size(); ++i) {
        const std::optional<int64_t> one = value.as_i64(array ? i : 0);
        if (!one) {
            fail(Code::format, "model: key '", prefix_, name, "' holds ", gguf::value_type_name(value.element_type()),
                 ", expected an integer");
        }
        if (*one < low || *one > high) {
            fail(Code::format, "model: key '", prefix_, name, "' is ", *one, ", expected ", low, " to ", high);
        }
        out[i] = *one;
    }
    return out;
}

double Keys::number(std::string_view name) const {
    const std::optional<double> value = need(name).as_f64();
    if (!value || !std::isfinite(*value)) fail(Code::format, "model: key '", prefix_, name, "' is not a finite number");
    return *value;
}

double Keys::number_or(std::string_view name, double fallback) const {
    return find(name) ? number(name) : fallback;
}

std::optional<bool> Keys::boolean(std::string_view name) const {
    const gguf::Value* value = find(name);
    if (!value) return std::nullopt;
    const std::optional<bool> flag = value->as_bool();
    if (!flag) fail(Code::format, "model: key '", prefix_, name, "' holds ", gguf::value_type_name(value->type()), ", expected bool");
    return flag;
}

std::string Keys::text_or(std::string_view name, std::string_view fallback) const {
    const gguf::Value* value = find(name);
    if (!value) return std::string(fallback);
    const std::optional<std::string_view> text = value->as_string();
    if (!text) fail(Code::format, "model: key '", prefix_, name, "' holds ", gguf::value_type_name(value->type()), ", expected string");
    return std::string(*text);
}

}  // namespace moepic
