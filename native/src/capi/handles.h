// What the opaque handles of moepic.h hold. Argument checks shared by the files of this room.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "capi/guard.h"
#include "engine/context.h"
#include "engine/model.h"
#include "engine/sampler.h"
#include "gguf/file.h"
#include "moepic.h"

struct moepic_file {
    const moepic::gguf::File* file;  // the one below, or a model's
    std::unique_ptr<moepic::gguf::File> own;
};

struct moepic_model {
    std::unique_ptr<moepic::Model> model;
    moepic_file file;
};

struct moepic_context {
    std::unique_ptr<moepic::Context> context;
    std::vector<std::byte> trace;         // handed out by moepic_context_trace
    std::vector<moepic::Event> timeline;  // handed out by moepic_context_timeline
};

struct moepic_sampler {
    std::unique_ptr<moepic::Sampler> sampler;
};

namespace moepic {

inline void need(const void* pointer, const char* name) {
    if (!pointer) fail(Code::argument, "argument '", name, "' is NULL");
}

// A copy of the caller's options as this library knows them: fields a shorter (older) struct lacks keep their defaults.
template <class Options, class Init>
Options read_options(const Options* given, Init init, const char* name) {
    Options options;
    init(&options);
    if (!given) return options;
    if (given->size < sizeof(given->size) || given->size > 65536) {
        fail(Code::argument, name, ": size is ", given->size, ", expected ", sizeof(Options), " (call ", name, "_init first)");
    }
    std::memcpy(&options, given, given->size < sizeof(Options) ? given->size : sizeof(Options));
    return options;
}

// Fill as much of an output struct as the caller's size holds.
template <class Info>
void write_info(Info* out, Info info, const char* name) {
    if (!out || out->size < sizeof(out->size) || out->size > 65536)
        fail(Code::argument, name, ": set size to sizeof(", name, ") before the call");
    const uint32_t size = out->size;
    std::memcpy(out, &info, size < sizeof(Info) ? size : sizeof(Info));
    out->size = size;
}

ContextOptions read_context_options(const moepic_context_options* given);

inline moepic_text text_of(std::string_view text) noexcept {
    return {text.data(), text.size()};
}

}  // namespace moepic
