// The bridge between two rooms that don't know each other: sizes of block types (quant) for the reader (gguf).
#pragma once

#include "gguf/file.h"
#include "quant/types.h"

namespace moepic {

inline bool lookup_type(uint32_t id, gguf::BlockLayout& out) {
    const TypeInfo* info = find_type(id);
    if (!info) return false;
    out = {info->block_len, info->block_bytes};
    return true;
}

}  // namespace moepic
