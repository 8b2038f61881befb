// Reads little-endian values from bytes in order, and knows where it is, so that every failure names the place.
// It never reads past the end: each take() is checked against what is left.
#pragma once

#include <bit>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "gguf/text.h"

namespace moepic::gguf {

static_assert(std::endian::native == std::endian::little, "values are read in place; a big-endian host needs swaps in Cursor and Value");

class Cursor {
public:
    static constexpr uint64_t kNoIndex = ~uint64_t{0};

    Cursor(std::span<const std::byte> bytes, std::string_view file) : bytes_(bytes), file_(file) {}

    uint64_t at() const noexcept { return at_; }
    uint64_t size() const noexcept { return bytes_.size(); }
    uint64_t left() const noexcept { return bytes_.size() - at_; }

    // Where we are, for messages: enter("key", 12) and then, once it is read, name("general.name").
    void enter(const char* kind, uint64_t index = kNoIndex) {
        kind_ = kind;
        index_ = index;
        name_ = {};
    }
    void enter(const char* kind, std::string_view name) {
        kind_ = kind;
        name_ = name;
    }
    void name(std::string_view name) { name_ = name; }

    const std::byte* take(uint64_t n, const char* what) {
        if (n > left()) {
            damaged(what, " at byte ", at_, " needs ", n, " bytes, but ", left(), " of the file's ", size(),
                    " are left (truncated download?)");
        }
        const std::byte* here = bytes_.data() + at_;
        at_ += n;
        return here;
    }

    template <class T>
    T read(const char* what) {
        T value;
        std::memcpy(&value, take(sizeof(T), what), sizeof(T));
        return value;
    }

    // u64 length, then bytes without a terminator.
    std::string_view string(const char* what) {
        const auto length = read<uint64_t>(what);
        return {reinterpret_cast<const char*>(take(length, what)), length};
    }

    // A count of things that take at least `each` bytes must fit in what is left. Called before anything is reserved.
    void expect_room(uint64_t count, uint64_t each, const char* what) const {
        if (count > left() / each) {
            damaged("expected at most ", left() / each, " ", what, " in the ", left(), " bytes left of ", size(), ", found a count of ",
                    count, " before byte ", at_, " (truncated download?)");
        }
    }

    template <class... Parts>
    [[noreturn]] void damaged(const Parts&... parts) const {
        fail(Code::format, "gguf: ", file_, ": ", place(), ": ", parts...);
    }

private:
    std::string place() const {
        if (!name_.empty()) return cat(kind_, " ", quoted(name_));
        return index_ == kNoIndex ? std::string(kind_) : cat(kind_, " ", index_);
    }

    std::span<const std::byte> bytes_;
    std::string_view file_;
    uint64_t at_ = 0;
    const char* kind_ = "header";
    uint64_t index_ = kNoIndex;
    std::string_view name_;
};

}  // namespace moepic::gguf
