// Opens a device library (api.h) at run time and turns its codes into Error. The core is built and starts without any; what is missing is
// said when a device is asked for.
#pragma once

#include <string>

#include "base/error.h"
#include "device/api.h"

namespace moepic::device {

enum class Kind {
    cuda,      // libmoepic_cuda.so: NVIDIA GPUs
    emulated,  // libmoepic_simt.so: the same kernels on the CPU, for tests
};

class Library {
public:
    Library(Kind kind, std::string path, const Api* api) : kind_(kind), path_(std::move(path)), api_(api) {}

    Kind kind() const noexcept { return kind_; }
    const std::string& path() const noexcept { return path_; }
    const Api& api() const noexcept { return *api_; }
    const Api* operator->() const noexcept { return api_; }

    // Throws what a code of the table means, with last_error() and `what` was being done; kOk returns.
    void check(int32_t code, const char* what) const;

    // Makes device `index` the calling thread's. Throws Error(device) where there is no such device or no driver.
    Info open(int32_t index) const;
    // The same, cheaply, for further threads.
    void use(int32_t index) const { check(api_->use(index), "choosing a device"); }

private:
    Kind kind_;
    std::string path_;
    const Api* api_;
};

// The library of a kind, opened once per path and never closed. `folder` is where it lies; empty: beside this library. Throws
// Error(device) if it is not there, can't be loaded, or has another table than this build. From any thread.
const Library& open_library(Kind kind, const std::string& folder = {});

}  // namespace moepic::device
