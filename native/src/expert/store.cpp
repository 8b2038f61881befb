#include "expert/store.h"

#include <algorithm>
#include <cstring>

namespace moepic {

void ExpertStore::measure_longest() {
    std::vector<StoredPiece> pieces;
    for (int il = 0; il < n_layer(); ++il) {
        for (int64_t g = 0; g < layout(il).n_granules;) {
            const GranuleRun run = unit(il, g);
            pieces.clear();
            list(il, 0, run, pieces);
            uint64_t bytes = 0;
            for (const StoredPiece& piece : pieces) bytes += piece.bytes;
            longest_bytes_ = std::max(longest_bytes_, bytes);
            most_pieces_ = std::max(most_pieces_, static_cast<int>(pieces.size()));
            g = run.first + run.count;
        }
    }
}

namespace {

class FileStore final : public ExpertStore {
public:
    explicit FileStore(std::vector<StoredLayer> layers) : ExpertStore(std::move(layers)) {
        for (const StoredLayer& layer : layers_) {
            std::vector<GranuleRun>& units = units_.emplace_back();
            for (int64_t g = 0; g < layer.layout.n_granules; ++g) units.push_back(read_unit(*layer.binding, layer.layout, g));
        }
        measure_longest();
    }
    GranuleRun unit(int il, int64_t granule) const override { return units_[static_cast<size_t>(il)][static_cast<size_t>(granule)]; }
    void list(int il, int64_t expert, GranuleRun run, std::vector<StoredPiece>& out) const override {
        const StoredLayer& layer = layers_[static_cast<size_t>(il)];
        std::vector<Extent> extents;
        list_extents(*layer.binding, layer.layout, expert, run, extents);
        for (const Extent& e : extents) out.push_back({static_cast<int>(e.tensor->shard), e.tensor->file_offset + e.at, e.bytes});
    }
    void land(const Fetched& fetched, int64_t granule, StripFiller& filler, std::byte* dst) const override {
        const StoredLayer& layer = layers_[static_cast<size_t>(fetched.layer)];
        std::vector<Extent> extents;
        list_extents(*layer.binding, layer.layout, fetched.expert, fetched.run, extents);
        filler.fill(*layer.binding, layer.layout, FetchedSource(extents, fetched.pieces), fetched.expert, granule, dst);
    }
    const std::byte* landed(const Fetched&, int64_t) const override { return nullptr; }
    const std::byte* in_place(int, int64_t, int64_t) const override { return nullptr; }

private:
    std::vector<std::vector<GranuleRun>> units_;  // [layer][granule]
};

class MemoryStore final : public ExpertStore {
public:
    explicit MemoryStore(std::vector<StoredLayer> layers) : ExpertStore(std::move(layers)) { measure_longest(); }
    GranuleRun unit(int, int64_t granule) const override { return {granule, 1}; }
    void list(int il, int64_t expert, GranuleRun run, std::vector<StoredPiece>& out) const override {
        const StripLayout& l = layout(il);
        out.push_back({il, static_cast<uint64_t>(expert) * l.strip_bytes() + static_cast<uint64_t>(run.first) * l.granule_bytes,
                       static_cast<uint64_t>(run.count) * l.granule_bytes});
    }
    void land(const Fetched& fetched, int64_t granule, StripFiller&, std::byte* dst) const override {
        std::memcpy(dst, landed(fetched, granule), layout(fetched.layer).granule_bytes);
    }
    const std::byte* landed(const Fetched& fetched, int64_t granule) const override {
        return fetched.pieces[0] + static_cast<size_t>(granule - fetched.run.first) * layout(fetched.layer).granule_bytes;
    }
    const std::byte* in_place(int il, int64_t expert, int64_t granule) const override {
        const StripLayout& l = layout(il);
        return layers_[static_cast<size_t>(il)].strips + static_cast<size_t>(expert) * l.strip_bytes() +
               static_cast<size_t>(granule) * l.granule_bytes;
    }
};

}  // namespace

std::unique_ptr<ExpertStore> make_file_store(std::vector<StoredLayer> layers) {
    return std::make_unique<FileStore>(std::move(layers));
}

std::unique_ptr<ExpertStore> make_memory_store(std::vector<StoredLayer> layers) {
    return std::make_unique<MemoryStore>(std::move(layers));
}

}  // namespace moepic
