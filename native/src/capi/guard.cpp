#include "capi/guard.h"

namespace moepic {
namespace {

thread_local std::string t_last_error;

}  // namespace

const char* last_error_text() noexcept {
    return t_last_error.c_str();
}

void set_last_error(const std::string& text) noexcept {
    try {
        t_last_error = text;
    } catch (...) {
        t_last_error.clear();
    }
}

}  // namespace moepic
