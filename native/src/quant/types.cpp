// The type table. Sizes come from the block structs, so a row cannot disagree with the bytes the codecs read.
#include "quant/types.h"

#include <cassert>

#include "quant/blocks.h"
#include "quant/codec.h"

namespace moepic {
namespace {

template <class Block>
constexpr TypeInfo row(Type type, const char* name, decltype(TypeInfo::decode) decode, decltype(TypeInfo::encode) encode) {
    return {type, name, Block::len, sizeof(Block), decode, encode};
}

constexpr TypeInfo table[] = {
    row<BlockF32>(Type::f32, "F32", codec::decode_f32, codec::encode_f32),
    row<BlockF16>(Type::f16, "F16", codec::decode_f16, codec::encode_f16),
    row<BlockQ4_0>(Type::q4_0, "Q4_0", codec::decode_q4_0, codec::encode_q4_0),
    row<BlockQ4_1>(Type::q4_1, "Q4_1", codec::decode_q4_1, codec::encode_q4_1),
    row<BlockQ5_0>(Type::q5_0, "Q5_0", codec::decode_q5_0, codec::encode_q5_0),
    row<BlockQ5_1>(Type::q5_1, "Q5_1", codec::decode_q5_1, codec::encode_q5_1),
    row<BlockQ8_0>(Type::q8_0, "Q8_0", codec::decode_q8_0, codec::encode_q8_0),
    row<BlockQ2_K>(Type::q2_k, "Q2_K", codec::decode_q2_k, codec::encode_q2_k),
    row<BlockQ3_K>(Type::q3_k, "Q3_K", codec::decode_q3_k, codec::encode_q3_k),
    row<BlockQ4_K>(Type::q4_k, "Q4_K", codec::decode_q4_k, codec::encode_q4_k),
    row<BlockQ5_K>(Type::q5_k, "Q5_K", codec::decode_q5_k, codec::encode_q5_k),
    row<BlockQ6_K>(Type::q6_k, "Q6_K", codec::decode_q6_k, codec::encode_q6_k),
    row<BlockIQ2_XXS>(Type::iq2_xxs, "IQ2_XXS", codec::decode_iq2_xxs, nullptr),
    row<BlockIQ2_XS>(Type::iq2_xs, "IQ2_XS", codec::decode_iq2_xs, nullptr),
    row<BlockIQ3_XXS>(Type::iq3_xxs, "IQ3_XXS", codec::decode_iq3_xxs, nullptr),
    row<BlockIQ4_NL>(Type::iq4_nl, "IQ4_NL", codec::decode_iq4_nl, codec::encode_iq4_nl),
    row<BlockIQ3_S>(Type::iq3_s, "IQ3_S", codec::decode_iq3_s, nullptr),
    row<BlockIQ2_S>(Type::iq2_s, "IQ2_S", codec::decode_iq2_s, nullptr),
    row<BlockIQ4_XS>(Type::iq4_xs, "IQ4_XS", codec::decode_iq4_xs, codec::encode_iq4_xs),
    row<BlockBF16>(Type::bf16, "BF16", codec::decode_bf16, codec::encode_bf16),
    row<BlockMXFP4>(Type::mxfp4, "MXFP4", codec::decode_mxfp4, codec::encode_mxfp4),
};

// Letters only differ in case by 32; digits and '_' compare as they are.
bool same_name(const char* a, const char* b) noexcept {
    const auto upper = [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; };
    while (*a != '\0' && upper(*a) == upper(*b)) ++a, ++b;
    return upper(*a) == upper(*b);
}

}  // namespace

const TypeInfo* find_type(uint32_t id) noexcept {
    for (const TypeInfo& info : table) {
        if (static_cast<uint32_t>(info.type) == id) return &info;
    }
    return nullptr;
}

const TypeInfo& type_info(Type type) noexcept {
    const TypeInfo* info = find_type(static_cast<uint32_t>(type));
    assert(info != nullptr);
    return *info;
}

const TypeInfo* find_type_by_name(const char* name) noexcept {
    for (const TypeInfo& info : table) {
        if (same_name(info.name, name)) return &info;
    }
    return nullptr;
}

}  // namespace moepic
