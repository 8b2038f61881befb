#include "capi/testing/gguf.h"

#include <algorithm>

#include "capi/guard.h"
#include "capi/handles.h"
#include "gguf/file.h"
#include "model/type_lookup.h"

using namespace moepic;

int moepic_test_gguf_parse(moepic_file** out, const void* bytes, uint64_t n, const char* name) {
    return guard([&] {
        auto handle = std::make_unique<moepic_file>();
        const std::span<const std::byte> all(static_cast<const std::byte*>(bytes), n);
        handle->own = std::make_unique<gguf::File>(gguf::File::parse(all, name, lookup_type));
        handle->file = handle->own.get();
        *out = handle.release();
    });
}

int moepic_test_gguf_facts(uint32_t* version, uint64_t* alignment, const moepic_file* file) {
    return guard([&] {
        *version = file->file->version();
        *alignment = file->file->alignment();
    });
}

int moepic_test_gguf_get(moepic_test_gguf_element* out, const moepic_file* file, int64_t key, uint64_t index) {
    return guard([&] {
        if (key < 0 || static_cast<size_t>(key) >= file->file->keys().size()) fail(Code::argument, "test: no key ", key);
        const gguf::Value& value = file->file->keys()[static_cast<size_t>(key)].value;
        const auto i64 = value.as_i64(index);
        const auto u64 = value.as_u64(index);
        const auto f64 = value.as_f64(index);
        const auto boolean = value.as_bool(index);
        const auto text = value.as_string(index);
        *out = {i64.has_value(), u64.has_value(), f64.has_value(), boolean.has_value(),     text.has_value(),
                i64.value_or(0), u64.value_or(0), f64.value_or(0), boolean.value_or(false), text_of(text.value_or(""))};
    });
}

int moepic_test_gguf_find_key(int64_t* out, const moepic_file* file, const char* name) {
    return guard([&] {
        const auto keys = file->file->keys();
        const gguf::Value* found = file->file->find(name);
        const auto entry = std::find_if(keys.begin(), keys.end(), [&](const gguf::KeyValue& k) { return &k.value == found; });
        *out = entry == keys.end() ? -1 : entry - keys.begin();
    });
}

int moepic_test_gguf_find_tensor(int64_t* out, const moepic_file* file, const char* name) {
    return guard([&] {
        const gguf::Tensor* found = file->file->find_tensor(name);
        *out = found ? found - file->file->tensors().data() : -1;
    });
}

int moepic_test_gguf_read(uint8_t* out, const moepic_file* file, int64_t tensor, uint64_t at, uint64_t n) {
    return guard([&] { file->file->read(file->file->tensors()[static_cast<size_t>(tensor)], at, {reinterpret_cast<std::byte*>(out), n}); });
}
