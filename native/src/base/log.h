// Messages for a person, handed to whoever loaded the library. The core never prints.
#pragma once

#include <cstdint>
#include <string>

namespace moepic {

enum class LogLevel : int { debug = 0, info = 1, warning = 2, error = 3 };

// The sink is process-wide because a downgrade can happen before any handle exists. Null drops messages.
// Setting and calling are serialised by a mutex; the sink may be called from any thread and must not call back into the library.
using LogSink = void (*)(int32_t level, const char* text, void* user);
void set_log_sink(LogSink sink, void* user);
void log_message(LogLevel level, const std::string& text);

}  // namespace moepic
