// The one place where failures become codes. Every exported function wraps its body in guard().
#pragma once

#include <new>

#include "base/error.h"

namespace moepic {

// Text of the last failure on this thread; never null.
const char* last_error_text() noexcept;
void set_last_error(const std::string& text) noexcept;

template <class Body>
int guard(Body&& body) noexcept {
    try {
        body();
        return 0;
    } catch (const Error& error) {
        set_last_error(error.text());
        return static_cast<int>(error.code());
    } catch (const std::bad_alloc&) {
        set_last_error("out of memory: an allocation was refused by the operating system");
        return static_cast<int>(Code::no_memory);
    } catch (const std::exception& error) {
        set_last_error(error.what());
        return static_cast<int>(Code::internal);
    } catch (...) {
        set_last_error("unknown failure");
        return static_cast<int>(Code::internal);
    }
}

}  // namespace moepic
