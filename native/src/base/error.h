// Failure inside the core: one exception type that carries a code and a text for a person.
// Thrown on the loading, configuration and argument paths; kernels never throw. capi/ catches everything and turns it into
// a negative code, so no exception leaves the library. The text says what, where, expected, found, and what to try.
#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <utility>

namespace moepic {

// The same numbers as MOEPIC_E_* in moepic.h (asserted in capi/).
enum class Code : int {
    ok = 0,
    argument = -1,      // the caller passed something impossible
    io = -2,            // the operating system refused: open, read, map, write
    format = -3,        // bytes that are not what they claim to be
    unsupported = -4,   // well formed, but not something this build can run
    no_memory = -5,     // an allocation failed
    budget = -6,        // a memory budget is too small for the request
    device = -7,        // a device is absent or failed
    context_full = -8,  // tokens do not fit the context
    cancelled = -9,     // a callback or cancel flag stopped the work
    internal = -10,     // a broken invariant of ours
};

class Error : public std::exception {
public:
    Error(Code code, std::string text) : code_(code), text_(std::move(text)) {}
    Code code() const noexcept { return code_; }
    const std::string& text() const noexcept { return text_; }
    const char* what() const noexcept override { return text_.c_str(); }

private:
    Code code_;
    std::string text_;
};

template <class... Parts>
std::string cat(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return std::move(out).str();
}

// fail(Code::format, "gguf: '", name, "' ends at byte ", end, ", file has ", size);
template <class... Parts>
[[noreturn]] void fail(Code code, const Parts&... parts) {
    throw Error(code, cat(parts...));
}

// "1.50 GiB" for messages; bytes below 1 KiB stay bytes.
std::string human_bytes(unsigned long long bytes);

}  // namespace moepic
