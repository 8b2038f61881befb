// moepic_file: metadata and tensor table.
#include "capi/handles.h"
#include "model/type_lookup.h"

using namespace moepic;

namespace {

const gguf::KeyValue& need_key(const moepic_file* file, int64_t index) {
    need(file, "file");
    if (index < 0 || static_cast<uint64_t>(index) >= file->file->keys().size()) {
        fail(Code::argument, "file: key index ", index, " is outside 0 to ", static_cast<int64_t>(file->file->keys().size()) - 1);
    }
    return file->file->keys()[static_cast<size_t>(index)];
}

template <class Out, class Read>
void read_values(Out* out, const moepic_file* file, int64_t index, const char* wanted, Read read) {
    const gguf::KeyValue& key = need_key(file, index);
    if (key.value.count() == 0) return;
    need(out, "out");
    for (uint64_t i = 0; i < key.value.count(); ++i) {
        const auto value = read(key.value, i);
        if (!value) {
            fail(Code::argument, "file: key '", key.key, "' holds ", gguf::value_type_name(key.value.element_type()),
                 ", which does not convert to ", wanted);
        }
        out[i] = *value;
    }
}

}  // namespace

int32_t moepic_file_open(moepic_file** out, const char* path) {
    return guard([&] {
        need(out, "out");
        need(path, "path");
        auto handle = std::make_unique<moepic_file>();
        handle->own = std::make_unique<gguf::File>(gguf::File::open(path, lookup_type));
        handle->file = handle->own.get();
        *out = handle.release();
    });
}

void moepic_file_free(moepic_file* file) {
    if (file && file->own) delete file;  // a model's file goes with the model
}

uint64_t moepic_file_bytes(const moepic_file* file) {
    return file ? file->file->file_bytes() : 0;
}

uint32_t moepic_file_shard_count(const moepic_file* file) {
    return file ? file->file->shard_count() : 0;
}

int32_t moepic_file_shard_path(moepic_text* out, const moepic_file* file, uint32_t shard) {
    return guard([&] {
        need(out, "out");
        need(file, "file");
        if (shard >= file->file->shard_count()) fail(Code::argument, "file: shard ", shard, " of ", file->file->shard_count());
        *out = text_of(file->file->shard_path(shard));
    });
}

int64_t moepic_file_key_count(const moepic_file* file) {
    return file ? static_cast<int64_t>(file->file->keys().size()) : 0;
}

int32_t moepic_file_key(moepic_key* out, const moepic_file* file, int64_t index) {
    return guard([&] {
        need(out, "out");
        const gguf::KeyValue& key = need_key(file, index);
        *out = {text_of(key.key), static_cast<uint32_t>(key.value.type()), static_cast<uint32_t>(key.value.element_type()),
                key.value.count()};
    });
}

int32_t moepic_file_values_i64(int64_t* out, const moepic_file* file, int64_t index) {
    return guard([&] { read_values(out, file, index, "an integer", [](const gguf::Value& v, uint64_t i) { return v.as_i64(i); }); });
}

int32_t moepic_file_values_f64(double* out, const moepic_file* file, int64_t index) {
    return guard([&] { read_values(out, file, index, "a number", [](const gguf::Value& v, uint64_t i) { return v.as_f64(i); }); });
}

int32_t moepic_file_values_text(moepic_text* out, const moepic_file* file, int64_t index) {
    return guard([&] {
        read_values(out, file, index, "a string", [](const gguf::Value& v, uint64_t i) -> std::optional<moepic_text> {
            const std::optional<std::string_view> text = v.as_string(i);
            if (!text) return std::nullopt;
            return text_of(*text);
        });
    });
}

int64_t moepic_file_tensor_count(const moepic_file* file) {
    return file ? static_cast<int64_t>(file->file->tensors().size()) : 0;
}

int32_t moepic_file_tensor(moepic_tensor* out, const moepic_file* file, int64_t index) {
    return guard([&] {
        need(out, "out");
        need(file, "file");
        if (index < 0 || static_cast<uint64_t>(index) >= file->file->tensors().size()) {
            fail(Code::argument, "file: tensor index ", index, " is outside 0 to ", static_cast<int64_t>(file->file->tensors().size()) - 1);
        }
        const gguf::Tensor& t = file->file->tensors()[static_cast<size_t>(index)];
        *out = {text_of(t.name), t.type, t.n_dims, {t.ne[0], t.ne[1], t.ne[2], t.ne[3]}, t.n_bytes, t.shard, t.file_offset, t.data};
    });
}
