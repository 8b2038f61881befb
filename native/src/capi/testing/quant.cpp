#include "capi/testing/quant.h"

#include "capi/guard.h"
#include "quant/half.h"
#include "quant/types.h"

namespace {

using moepic::Code;
using moepic::fail;
using moepic::guard;

const moepic::TypeInfo& known_type(uint32_t id) {
    const moepic::TypeInfo* info = moepic::find_type(id);
    if (info == nullptr) fail(Code::argument, "quant: no type has the id ", id);
    return *info;
}

void check_length(const moepic::TypeInfo& info, int64_t n) {
    if (n < 0 || n % info.block_len != 0) {
        fail(Code::argument, "quant: ", info.name, " holds ", info.block_len, " weights per block, but ", n, " were asked for");
    }
}

template <class From, class To>
void convert_each(const void* from, void* to, int64_t n, To (*convert)(From) noexcept) {
    const auto* source = static_cast<const From*>(from);
    auto* target = static_cast<To*>(to);
    for (int64_t i = 0; i < n; ++i) target[i] = convert(source[i]);
}

}  // namespace

int moepic_test_type_info(uint32_t type, const char** name, uint32_t* block_len, uint32_t* block_bytes, int* has_encoder) {
    return guard([&] {
        const moepic::TypeInfo& info = known_type(type);
        *name = info.name;
        *block_len = info.block_len;
        *block_bytes = info.block_bytes;
        *has_encoder = info.encode != nullptr;
    });
}

int moepic_test_type_by_name(const char* name, uint32_t* type) {
    return guard([&] {
        const moepic::TypeInfo* info = moepic::find_type_by_name(name);
        if (info == nullptr) fail(Code::argument, "quant: no type has the name '", name, "'");
        *type = static_cast<uint32_t>(info->type);
    });
}

int moepic_test_decode(uint32_t type, const void* blocks, float* out, int64_t n) {
    return guard([&] {
        const moepic::TypeInfo& info = known_type(type);
        check_length(info, n);
        info.decode(static_cast<const std::byte*>(blocks), out, n);
    });
}

int moepic_test_encode(uint32_t type, const float* in, const float* importance, void* blocks, int64_t n) {
    return guard([&] {
        const moepic::TypeInfo& info = known_type(type);
        check_length(info, n);
        if (info.encode == nullptr) fail(Code::unsupported, "quant: this build has no encoder for ", info.name);
        info.encode(in, importance, static_cast<std::byte*>(blocks), n);
    });
}

int moepic_test_convert_half(int kind, const void* from, void* to, int64_t n) {
    return guard([&] {
        switch (kind) {
            case 0:
                return convert_each<uint16_t, float>(from, to, n, moepic::f16_to_f32);
            case 1:
                return convert_each<float, uint16_t>(from, to, n, moepic::f32_to_f16);
            case 2:
                return convert_each<uint16_t, float>(from, to, n, moepic::bf16_to_f32);
            case 3:
                return convert_each<float, uint16_t>(from, to, n, moepic::f32_to_bf16);
            default:
                fail(Code::argument, "quant: kind of conversion is 0..3, not ", kind);
        }
    });
}
