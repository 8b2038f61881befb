// Devices: what is there, and options.
#include <cstring>

#include "capi/device_options.h"
#include "capi/handles.h"
#include "device/library.h"
#include "engine/device_model.h"

using namespace moepic;

namespace {

DeviceKind read_kind(int32_t kind) {
    if (kind < MOEPIC_DEVICE_CPU || kind > MOEPIC_DEVICE_EMULATED)
        fail(Code::argument, "device: kind is ", kind, ", expected 0 (CPU), 1 (CUDA) or 2 (emulated)");
    return static_cast<DeviceKind>(kind);
}

}  // namespace

void moepic_device_options_init(moepic_device_options* options) {
    if (options) *options = {sizeof(moepic_device_options), MOEPIC_DEVICE_CPU, 0, 1, -1, 0, 0, nullptr};
}

DeviceOptions moepic::read_device_options(const moepic_device_options* given) {
    const moepic_device_options o = read_options(given, moepic_device_options_init, "moepic_device_options");
    DeviceOptions options;
    options.kind = read_kind(o.kind);
    options.index = o.index;
    options.folder = o.folder ? o.folder : "";
    options.vram_bytes = o.vram_bytes;
    options.pin_bytes = o.pin_bytes;
    options.cpu_lane = o.cpu_lane != 0;
    if (o.graphs < -1 || o.graphs > 1)
        fail(Code::argument, "device: graphs is ", o.graphs, ", expected -1 (measured), 0 (never) or 1 (always)");
    options.graphs = static_cast<Graphs>(o.graphs);
    return options;
}

int32_t moepic_device_find(moepic_device_info* out, int32_t kind, int32_t index, const char* folder) {
    return guard([&] {
        const DeviceKind known = read_kind(kind);
        if (known == DeviceKind::cpu) fail(Code::argument, "device: the CPU is always there");
        const device::Info found = open_device(known, folder ? folder : "").open(index);
        moepic_device_info info{};
        std::memcpy(info.name, found.name, sizeof info.name);
        info.major = found.major;
        info.minor = found.minor;
        info.n_sm = found.n_sm;
        info.total_bytes = found.total_bytes;
        info.free_bytes = found.free_bytes;
        write_info(out, info, "moepic_device_info");
    });
}
