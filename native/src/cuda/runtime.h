// The half of the table that is not arithmetic: devices, memory, streams, events, copies. Signatures are those of device/api.h.
#pragma once

#include "device/api.h"

namespace moepic::device {

const char* last_error();
int32_t count(int32_t* n);
int32_t open(int32_t index, Info* info);
int32_t use(int32_t index);
int32_t memory(uint64_t* free_bytes, uint64_t* total_bytes);
int32_t allocate(size_t bytes, void** out);
void release(void* data);
int32_t allocate_host(size_t bytes, void** out);
void release_host(void* data);
int32_t pin(void* data, size_t bytes);
void unpin(void* data);
int32_t make_stream(int32_t priority, Stream* out);
void free_stream(Stream stream);
int32_t synchronize(Stream stream);
int32_t make_event(Event* out);
void free_event(Event event);
int32_t record(Event event, Stream stream);
int32_t wait(Stream stream, Event event);
int32_t is_done(Event event, int32_t* out);
int32_t wait_host(Event event);
int32_t elapsed(Event from, Event to, double* seconds);
int32_t begin_capture(Stream stream);
int32_t end_capture(Stream stream, Graph* out);
int32_t launch_graph(Graph graph, Stream stream);
void free_graph(Graph graph);
int32_t copy(void* to, const void* from, size_t bytes, Stream stream);
int32_t clear(void* data, size_t bytes, Stream stream);
int32_t post(const void* from, size_t n_dwords, void* mapped, uint32_t* flag, uint32_t value, Stream stream);

}  // namespace moepic::device
