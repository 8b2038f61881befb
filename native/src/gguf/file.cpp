// Opens files, joins the shards of a split, and answers look-ups. The bytes are read by Parser, the rules of splits are in shards.h.
#include "gguf/file.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/mapped_file.h"
#include "gguf/name_index.h"
#include "gguf/parser.h"
#include "gguf/shards.h"
#include "gguf/text.h"

namespace moepic::gguf {

struct File::Impl {
    struct Shard {
        std::string path;
        MappedFile map;                    // empty when the bytes are the caller's
        std::span<const std::byte> bytes;  // of the map, or the caller's
    };
    std::vector<Shard> shards;
    std::vector<KeyValue> keys;
    std::vector<Tensor> tensors;
    NameIndex key_index;
    NameIndex tensor_index;
    uint64_t alignment = kDefaultAlignment;
    uint32_t version = 0;

    // Appends a shard's tensors; the first shard also gives the keys.
    void add(Shard shard, ParsedShard parsed) {
        if (shards.empty()) {
            keys = std::move(parsed.keys);
            alignment = parsed.alignment;
            version = parsed.version;
        }
        const auto index = static_cast<uint32_t>(shards.size());
        for (Tensor& tensor : parsed.tensors) tensor.shard = index;
        if (tensors.empty()) {
            tensors = std::move(parsed.tensors);
        } else {
            tensors.insert(tensors.end(), parsed.tensors.begin(), parsed.tensors.end());
        }
        shards.push_back(std::move(shard));
    }

    void finish() {
        key_index.build(keys, [](const KeyValue& entry) { return entry.key; });
        tensor_index.build(tensors, [](const Tensor& tensor) { return tensor.name; });
        if (const auto twins = tensor_index.duplicate()) {
            const Tensor& first = tensors[twins->first];
            const Tensor& second = tensors[twins->second];
            fail(Code::format, "gguf: ", shards[second.shard].path, ": tensor ", quoted(second.name),
                 " appears twice, expected once; the first ",
                 first.shard == second.shard ? "is in the same file" : "is in " + shards[first.shard].path);
        }
    }
};

namespace {

// A shard between opening and joining.
struct Opened {
    std::string path;
    MappedFile map;
    ParsedShard parsed;
    Split split;
};

Opened open_shard(const std::string& path, TypeLookup lookup) {
    Opened out{path, MappedFile(path), {}, {}};
    out.parsed = Parser(out.map.bytes(), path, lookup).parse();
    out.split = read_split(out.parsed.keys, path);
    return out;
}

Opened open_sibling(const std::string& path, uint64_t index, uint64_t count, TypeLookup lookup) {
    try {
        return open_shard(path, lookup);
    } catch (const Error& error) {
        if (error.code() != Code::io) throw;
        fail(Code::io, "gguf: shard ", index + 1, " of ", count, ": ", error.text(), " (all ", count, " shards must be in one folder)");
    }
}

// A later shard may leave general.alignment to the first one. llama.cpp's splitter then pads it by the default, gguf's writer by the first
// shard's alignment; nothing but the length of the file tells which. Read by the default, a file of the second kind would give wrong
// bytes in silence.
void settle_alignment(Opened& shard, uint64_t first_alignment, TypeLookup lookup) {
    const ParsedShard& parsed = shard.parsed;
    if (parsed.says_alignment || parsed.alignment == first_alignment || parsed.tensors.empty()) return;
    const uint64_t padded_end = (parsed.data_end + parsed.alignment - 1) & ~(parsed.alignment - 1);
    if (padded_end >= shard.map.bytes().size()) return;  // nothing is left over: the default it was
    shard.parsed = Parser(shard.map.bytes(), shard.path, lookup, first_alignment).parse();
}

}  // namespace

File File::open(const std::string& path, TypeLookup lookup) {
    auto impl = std::make_unique<Impl>();
    const auto add = [&](Opened&& shard) {
        const std::span<const std::byte> bytes = shard.map.bytes();
        impl->add({std::move(shard.path), std::move(shard.map), bytes}, std::move(shard.parsed));
    };
    Opened asked = open_shard(path, lookup);
    const Split split = asked.split;
    if (split.count == 1) {
        add(std::move(asked));
    } else {
        const std::string prefix = shard_prefix(path, split);
        Split first;
        std::string first_path;
        for (uint64_t i = 0; i < split.count; ++i) {
            Opened shard = i == split.index ? std::move(asked) : open_sibling(shard_file(prefix, i, split.count), i, split.count, lookup);
            if (i == 0) {
                first = shard.split;
                first_path = shard.path;
            }
            check_shard(shard.split, shard.path, i, first, first_path);
            if (i > 0) settle_alignment(shard, impl->alignment, lookup);
            if (i == 0 && shard.split.count != split.count) {
                fail(Code::format, "gguf: ", shard.path, ": key 'split.count': expected ", split.count, " as in ", path, ", found ",
                     shard.split.count, " (shards of different files?)");
            }
            add(std::move(shard));
        }
    }
    if (split.total_tensors && *split.total_tensors != impl->tensors.size()) {
        fail(Code::format, "gguf: ", path, ": key 'split.tensors.count': expected ", impl->tensors.size(), ", the tensors of all ",
             split.count, " shards, found ", *split.total_tensors);
    }
    impl->finish();
    return File(std::move(impl));
}

File File::parse(std::span<const std::byte> bytes, const std::string& name, TypeLookup lookup) {
    auto impl = std::make_unique<Impl>();
    ParsedShard parsed = Parser(bytes, name, lookup).parse();
    read_split(parsed.keys, name);  // its checks
    impl->add({name, MappedFile(), bytes}, std::move(parsed));
    impl->finish();
    return File(std::move(impl));
}

File::File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
File::File(File&&) noexcept = default;
File& File::operator=(File&&) noexcept = default;
File::~File() = default;

std::span<const KeyValue> File::keys() const {
    return impl_->keys;
}

const Value* File::find(std::string_view key) const {
    const auto found = impl_->key_index.find(key);
    return found ? &impl_->keys[*found].value : nullptr;
}

std::span<const Tensor> File::tensors() const {
    return impl_->tensors;
}

const Tensor* File::find_tensor(std::string_view name) const {
    const auto found = impl_->tensor_index.find(name);
    return found ? &impl_->tensors[*found] : nullptr;
}

uint64_t File::alignment() const {
    return impl_->alignment;
}

uint32_t File::version() const {
    return impl_->version;
}

uint32_t File::shard_count() const {
    return static_cast<uint32_t>(impl_->shards.size());
}

const std::string& File::shard_path(uint32_t index) const {
    if (index >= impl_->shards.size()) fail(Code::argument, "gguf: shard ", index, " asked for, there are ", impl_->shards.size());
    return impl_->shards[index].path;
}

uint64_t File::file_bytes() const {
    uint64_t total = 0;
    for (const Impl::Shard& shard : impl_->shards) total += shard.bytes.size();
    return total;
}

void File::read(const Tensor& tensor, uint64_t at, std::span<std::byte> to) const {
    const Impl::Shard& shard = impl_->shards[tensor.shard];
    if (shard.map.bytes().empty()) {  // the bytes are the caller's
        std::copy_n(tensor.data + at, to.size(), to.data());
        return;
    }
    size_t n = 0;
    try {
        n = shard.map.read(tensor.file_offset + at, to);
    } catch (const Error& error) {
        fail(error.code(), "gguf: ", shard.path, ": ", quoted(tensor.name), " ", error.text());
    }
    if (n < to.size()) {
        fail(Code::io, "gguf: ", shard.path, ": ", quoted(tensor.name), " ends at byte ", tensor.file_offset + tensor.n_bytes,
             ", the file now at ", tensor.file_offset + at + n, ": it was shortened since it was opened (replace files by renaming)");
    }
}

}  // namespace moepic::gguf
