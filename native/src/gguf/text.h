// Text helpers of the reader: is it UTF-8, how to show a hostile name to a person, and what a file is that is not GGUF.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace moepic::gguf {

// Well-formed UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(std::string_view text) noexcept;

// 'text' in single quotes for an error message: control bytes, and high bytes of text that is not UTF-8, as \xNN; at most
// some 80 bytes of it, then "...". Always printable, always UTF-8.
std::string quoted(std::string_view text);

// What a file that does not start with the GGUF magic seems to be, with advice, as the end of a sentence ("found ...").
std::string looks_like(std::span<const std::byte> bytes);

}  // namespace moepic::gguf
