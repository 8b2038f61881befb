#include "gguf/text.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace moepic::gguf {
namespace {

std::string escaped_byte(unsigned char byte) {
    static const char digits[] = "0123456789abcdef";
    return {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
}

struct Signature {
    std::string_view start;
    const char* what;
};

// The things people really hand to a GGUF reader, by their first bytes.
constexpr Signature kSignatures[] = {
    {"version https://git-lfs", "a Git LFS pointer (run 'git lfs pull' to fetch the real file)"},
    {std::string_view("PK\3\4", 4), "a zip archive (a PyTorch checkpoint? convert it first, or unpack it)"},
    {std::string_view("\x80\x02", 2), "a Python pickle (a PyTorch checkpoint? convert it first)"},
    {std::string_view("\x1f\x8b", 2), "a gzip archive (unpack it first)"},
    {std::string_view("\x28\xb5\x2f\xfd", 4), "a zstd archive (unpack it first)"},
    {std::string_view("\xfd"
                      "7zXZ",
                      5),
     "an xz archive (unpack it first)"},
    {std::string_view("7z\xbc\xaf", 4), "a 7z archive (unpack it first)"},
    {std::string_view("\x89HDF", 4), "an HDF5 file (convert it first)"},
    {std::string_view("\x7f"
                      "ELF",
                      4),
     "a program"},
    {"lmgg", "a ggml file from before GGUF (convert the original model again)"},
    {"fmgg", "a ggmf file from before GGUF (convert the original model again)"},
    {"tjgg", "a ggjt file from before GGUF (convert the original model again)"},
    {"FUGG", "GGUF with its magic byte-swapped, from a big-endian machine (convert it to little-endian)"},
};

bool starts_with_html(std::string_view head) {
    const size_t first = head.find_first_not_of(" \t\r\n\xef\xbb\xbf");
    if (first == std::string_view::npos || head[first] != '<') return false;
    std::string lower;
    for (char c : head.substr(first, 15)) lower += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    return lower.starts_with("<!doctype") || lower.starts_with("<html") || lower.starts_with("<?xml") || lower.starts_with("<head");
}

// safetensors: u64 length of a JSON header, then the header.
bool is_safetensors(std::span<const std::byte> bytes) {
    if (bytes.size() < 9) return false;
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), 8);
    return header >= 2 && header <= bytes.size() - 8 && static_cast<char>(bytes[8]) == '{';
}

}  // namespace

bool is_utf8(std::string_view text) noexcept {
    const auto* at = reinterpret_cast<const unsigned char*>(text.data());
    const auto* const end = at + text.size();
    while (at < end) {
        const unsigned char lead = *at;
        if (lead < 0x80) {
            ++at;
            continue;
        }
        const int more = lead >= 0xc2 && lead <= 0xdf ? 1 : lead >= 0xe0 && lead <= 0xef ? 2 : lead >= 0xf0 && lead <= 0xf4 ? 3 : 0;
        if (more == 0 || end - at <= more) return false;
        for (int i = 1; i <= more; ++i)
            if ((at[i] & 0xc0) != 0x80) return false;
        if (lead == 0xe0 && at[1] < 0xa0) return false;  // overlong
        if (lead == 0xed && at[1] > 0x9f) return false;  // surrogates
        if (lead == 0xf0 && at[1] < 0x90) return false;  // overlong
        if (lead == 0xf4 && at[1] > 0x8f) return false;  // above U+10FFFF
        at += more + 1;
    }
    return true;
}

std::string quoted(std::string_view text) {
    constexpr size_t kShown = 80;
    std::string_view head = text.substr(0, kShown);
    if (text.size() > kShown) {
        // Cut between characters: drop a torn tail, which is at most three bytes when the text is UTF-8.
        for (int i = 0; i < 3 && !head.empty() && !is_utf8(head); ++i) head.remove_suffix(1);
        if (!is_utf8(head)) head = text.substr(0, kShown);
    }
    const bool utf8 = is_utf8(head);
    std::string out = "'";
    for (char c : head) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte == 0x7f || (byte >= 0x80 && !utf8)) {
            out += escaped_byte(byte);
        } else {
            out += c;
        }
    }
    return out + (head.size() < text.size() ? "...'" : "'");
}

std::string looks_like(std::span<const std::byte> bytes) {
    const std::string_view head(reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), 64));
    for (const Signature& signature : kSignatures)
        if (head.starts_with(signature.start)) return signature.what;
    if (starts_with_html(head)) return "a web page (an error or login page saved in place of the file? download it again)";
    if (is_safetensors(bytes)) return "a safetensors file (convert it with convert/to_gguf.py)";
    if (std::all_of(head.begin(), head.end(), [](char c) { return c == 0; })) {
        return "zero bytes (a download that reserved its space and did not finish?)";
    }
    if (head.starts_with('{')) return "JSON text (a config or an error message saved in place of the file?)";
    return quoted(head.substr(0, 4));
}

}  // namespace moepic::gguf
