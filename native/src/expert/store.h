// The expert store: where the bytes of every routed expert are when they are not in the arena, and how to turn what a lane brought into
// granules the kernels can read. Two kinds: the file itself, and memory (what a device would copy from). Moves nothing; chooses nothing.
//
// Layers here are the MoE layers in order, not counting dense ones between them; `source` numbers what a lane opens: shards, or blocks of
// memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "expert/strip.h"

namespace moepic {

// Bytes [offset, offset + bytes) of a source.
struct StoredPiece {
    int source = 0;
    uint64_t offset = 0;
    uint64_t bytes = 0;
};

// One MoE layer's experts. The pointers outlive the store.
struct StoredLayer {
    const ExpertBinding* binding = nullptr;
    StripLayout layout;
    const std::byte* strips = nullptr;  // in memory: strip e at e * layout.strip_bytes(); null: only in the file
};

// A run of granules of one expert as a lane delivered it: pieces in the order of ExpertStore::list.
struct Fetched {
    int layer = 0;
    int64_t expert = 0;
    GranuleRun run;
    std::span<const std::byte* const> pieces;
};

class ExpertStore {
public:
    virtual ~ExpertStore() = default;

    // Granules that are read together (read_unit): a run of missing granules never crosses the border of one.
    virtual GranuleRun unit(int layer, int64_t granule) const = 0;
    virtual void list(int layer, int64_t expert, GranuleRun run, std::vector<StoredPiece>& out) const = 0;
    // Writes one granule of what was fetched to `dst`, in the kernels' layout. Any thread, with a filler of its own.
    virtual void land(const Fetched& fetched, int64_t granule, StripFiller& filler, std::byte* dst) const = 0;
    // Where a fetched granule can be computed without landing; null: it has to land.
    virtual const std::byte* landed(const Fetched& fetched, int64_t granule) const = 0;
    // Where the granule lies ready to be computed without any lane; null: nowhere.
    virtual const std::byte* in_place(int layer, int64_t expert, int64_t granule) const = 0;

    const StripLayout& layout(int layer) const { return layers_[static_cast<size_t>(layer)].layout; }
    int n_layer() const { return static_cast<int>(layers_.size()); }
    // Of the longest run that is read together, over all layers; and the most pieces of one.
    uint64_t longest_bytes() const { return longest_bytes_; }
    int most_pieces() const { return most_pieces_; }

protected:
    explicit ExpertStore(std::vector<StoredLayer> layers) : layers_(std::move(layers)) {}
    void measure_longest();

    std::vector<StoredLayer> layers_;
    uint64_t longest_bytes_ = 0;
    int most_pieces_ = 0;
};

// Sources are the shards of the file.
std::unique_ptr<ExpertStore> make_file_store(std::vector<StoredLayer> layers);
// Source i is the memory of layer i's strips.
std::unique_ptr<ExpertStore> make_memory_store(std::vector<StoredLayer> layers);

}  // namespace moepic
