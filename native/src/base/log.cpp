#include "base/log.h"

#include <mutex>

namespace moepic {
namespace {

struct Sink {
    std::mutex mutex;
    LogSink call = nullptr;
    void* user = nullptr;
};

Sink& sink() {
    static Sink instance;
    return instance;
}

}  // namespace

void set_log_sink(LogSink call, void* user) {
    std::lock_guard lock(sink().mutex);
    sink().call = call;
    sink().user = user;
}

void log_message(LogLevel level, const std::string& text) {
    std::lock_guard lock(sink().mutex);
    if (sink().call) sink().call(static_cast<int32_t>(level), text.c_str(), sink().user);
}

}  // namespace moepic
