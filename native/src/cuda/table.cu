// The table of a device library (device/api.h), and the one symbol it exports.
#include "cuda/attention.h"
#include "cuda/elementwise.h"
#include "cuda/experts.h"
#include "cuda/heads.h"
#include "cuda/kv.h"
#include "cuda/matmul.h"
#include "cuda/norm.h"
#include "cuda/quantize.h"
#include "cuda/recurrence.h"
#include "cuda/route.h"
#include "cuda/runtime.h"
#include "device/api.h"

namespace moepic::device {
namespace {

Api make_table() {
    Api api{};
    api.version = kApiVersion;
    api.size = sizeof(Api);

    api.last_error = last_error;
    api.count = count;
    api.open = open;
    api.use = use;
    api.memory = memory;
    api.allocate = allocate;
    api.release = release;
    api.allocate_host = allocate_host;
    api.release_host = release_host;
    api.pin = pin;
    api.unpin = unpin;
    api.make_stream = make_stream;
    api.free_stream = free_stream;
    api.synchronize = synchronize;
    api.make_event = make_event;
    api.free_event = free_event;
    api.record = record;
    api.wait = wait;
    api.is_done = is_done;
    api.wait_host = wait_host;
    api.elapsed = elapsed;
    api.begin_capture = begin_capture;
    api.end_capture = end_capture;
    api.launch_graph = launch_graph;
    api.free_graph = free_graph;
    api.copy = copy;
    api.clear = clear;
    api.post = post;

    api.norm = norm;
    api.quantize = quantize;
    api.matmul = matmul;
    api.heads = heads;
    api.latent_heads = latent_heads;
    api.kv_store = kv_store;
    api.attention_scratch = attention_scratch;
    api.attention = attention;
    api.glu = glu;
    api.scale = scale;
    api.scale_add = scale_add;
    api.add = add;
    api.multiply = multiply;
    api.sigmoid = sigmoid;
    api.conv = conv;
    api.delta_gates = delta_gates;
    api.delta_rule = delta_rule;
    api.route = route;
    api.list_tasks = list_tasks;
    api.expert_intermediate = expert_intermediate;
    api.expert_down_few = expert_down_few;
    api.expert_down_many = expert_down_many;
    api.reduce = reduce;
    return api;
}

}  // namespace
}  // namespace moepic::device

extern "C" __attribute__((visibility("default"))) const moepic::device::Api* moepic_device_api() {
    static const moepic::device::Api table = moepic::device::make_table();
    return &table;
}
