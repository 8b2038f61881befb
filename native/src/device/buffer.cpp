#include "device/buffer.h"

namespace moepic::device {
namespace {

template <class Bytes>
Bytes obtain(const Library& library, int32_t (*Api::*get)(size_t, void**), size_t bytes, const char* kind, const char* what) {
    if (bytes == 0) return {};
    void* data = nullptr;
    if (const int32_t code = (library.api().*get)(bytes, &data); code != kOk)
        library.check(code, cat("allocating ", what, " (", human_bytes(bytes), kind, ')').c_str());
    return Bytes(library, data, bytes);
}

}  // namespace

DeviceMemory allocate(const Library& library, size_t bytes, const char* what) {
    return obtain<DeviceMemory>(library, &Api::allocate, bytes, "", what);
}

HostMemory allocate_host(const Library& library, size_t bytes, const char* what) {
    return obtain<HostMemory>(library, &Api::allocate_host, bytes, ", pinned", what);
}

PinnedRange pin(const Library& library, std::span<std::byte> range, const char* what) {
    if (range.empty()) return {};
    if (const int32_t code = library->pin(range.data(), range.size()); code != kOk)
        library.check(code, cat("pinning ", what, " (", human_bytes(range.size()), ')').c_str());
    return PinnedRange(library, range.data(), range.size());
}

OwnedEvent::OwnedEvent(const Library& library) {
    Event event = nullptr;
    library.check(library->make_event(&event), "making an event");
    library_ = &library;
    handle_ = event;
}

bool OwnedEvent::is_done() const {
    int32_t done = 0;
    library_->check(library_->api().is_done(handle_, &done), "asking for an event");
    return done != 0;
}

void OwnedEvent::wait_host() const {
    library_->check(library_->api().wait_host(handle_), "waiting for an event");
}

OwnedStream::OwnedStream(const Library& library, int32_t priority) {
    Stream stream = nullptr;
    library.check(library->make_stream(priority, &stream), "making a stream");
    library_ = &library;
    handle_ = stream;
}

void OwnedStream::synchronize() const {
    library_->check(library_->api().synchronize(handle_), "waiting for a stream");
}

void OwnedStream::record(const OwnedEvent& event) const {
    library_->check(library_->api().record(event.get(), handle_), "recording an event");
}

void OwnedStream::wait(const OwnedEvent& event) const {
    library_->check(library_->api().wait(handle_, event.get()), "making a stream wait");
}

void OwnedStream::copy(void* to, const void* from, size_t bytes) const {
    library_->check(library_->api().copy(to, from, bytes, handle_), "copying");
}

void OwnedStream::clear(void* data, size_t bytes) const {
    library_->check(library_->api().clear(data, bytes, handle_), "clearing");
}

OwnedGraph OwnedStream::capture(const std::function<void()>& give) const {
    library_->check(library_->api().begin_capture(handle_), "beginning to capture a stream");
    try {
        give();
    } catch (...) {
        (void)library_->api().end_capture(handle_, nullptr);
        throw;
    }
    Graph graph = nullptr;
    library_->check(library_->api().end_capture(handle_, &graph), "capturing a stream");
    return {*library_, graph};
}

void OwnedStream::launch(const OwnedGraph& graph) const {
    library_->check(library_->api().launch_graph(graph.get(), handle_), "launching a graph");
}

}  // namespace moepic::device
