#include "device/library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <string>

namespace moepic::device {
namespace {

const char* file_name(Kind kind) {
    return kind == Kind::cuda ? "libmoepic_cuda.so" : "libmoepic_simt.so";
}

const char* how_to_build(Kind kind) {
    return kind == Kind::cuda ? "build with -DMOEPIC_CUDA=ON; docs/cuda.md" : "build with -DMOEPIC_SIMT=ON; docs/cuda.md";
}

std::string own_folder() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(&file_name), &info) == 0 || info.dli_fname == nullptr)
        fail(Code::internal, "device: the system does not say where this library lies");
    const std::string path = info.dli_fname;
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

Library load(Kind kind, const std::string& path) {
    if (access(path.c_str(), F_OK) != 0)
        fail(Code::device, "device: '", path, "' does not exist; this build has no such device (", how_to_build(kind), ')');
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) fail(Code::device, "device: can't load '", path, "': ", dlerror());
    const auto entry = reinterpret_cast<Entry>(dlsym(handle, kEntryName));
    if (entry == nullptr) fail(Code::device, "device: '", path, "' has no ", kEntryName, "; it is no device library");
    const Api* api = entry();
    if (api->version != kApiVersion || api->size != sizeof(Api))
        fail(Code::device, "device: '", path, "' has table version ", api->version, " of ", api->size, " bytes, expected ", kApiVersion,
             " of ", sizeof(Api), "; build both libraries from one source tree");
    return Library(kind, path, api);
}

}  // namespace

void Library::check(int32_t code, const char* what) const {
    if (code == kOk) return;
    const Code kind = code == kNoMemory ? Code::no_memory : code == kUnsupported ? Code::unsupported : Code::device;
    fail(kind, "device: ", what, ": ", api_->last_error());
}

Info Library::open(int32_t index) const {
    int32_t n = 0;
    check(api_->count(&n), "looking for devices");
    if (index < 0 || index >= n) fail(Code::device, "device: there is no device ", index, "; this machine has ", n, ", counted from 0");
    Info info{};
    check(api_->open(index, &info), "opening a device");
    return info;
}

const Library& open_library(Kind kind, const std::string& folder) {
    static std::mutex mutex;
    static std::map<std::string, Library> opened;
    const std::string path = (folder.empty() ? own_folder() : folder) + '/' + file_name(kind);
    const std::lock_guard lock(mutex);
    auto found = opened.find(path);
    if (found == opened.end()) found = opened.emplace(path, load(kind, path)).first;
    return found->second;
}

}  // namespace moepic::device
