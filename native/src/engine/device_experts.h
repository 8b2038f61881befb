// Runs experts divided between a device's memory, the link to it and the CPU: owns the arena and the staging frames on the device, the
// residency, policy and predictor of a model, and says of every granule of a layer where kernels will find it and when.
//
// All experts lie in host memory (strips). A layer goes through a Pass:
//   resident granules and those fetched ahead are ready at once;
//   the others form a queue, hottest first. next() gives its head to the link: copies on a stream of their own, for which the compute
//   stream is made to wait, so kernels may be launched at once. take_in_place() gives its tail to the CPU, which computes from the same
//   bytes in host memory. Each end takes only what it would finish before the other could, so both end together.
//   Of a prompt the queue ends in whole experts that neither are here in part nor are to stay, most tokens first: those the CPU may take,
//   each as a whole, because an expert's granules are added up in order where they are computed. What is to stay has to move anyway.
// Nothing here waits for the device: order is kept by events alone. A layer that lacks nothing may go through a ResidentPass instead.
//
//   passes                 the kernels of one, whatever its context, wait for those of the one before (last_use_), and so for what it
//                          brought into slots
//   copies of a pass       wait for the kernels of the passes before it: a slot or frame may be overwritten then
//   kernels of a pass      wait for the copies they read (next, await_ahead)
//   frames of a queue      two halves: copies into one wait for the kernels that last read it (half_done_)
//   fetching ahead         one granule after the other, few under way at once, fed by pump() while the host waits for the device: so demand
//                          never waits behind more than those few
//
// Threads: owner_ is held by a pass. Inside it, next() and the rest belong to the pass's thread; take_in_place() and its end may be called
// by others too: state_ guards the two ends of the queue.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "device/buffer.h"
#include "device/library.h"
#include "engine/cpu_cost.h"
#include "engine/device_arena.h"
#include "engine/device_resident.h"
#include "engine/pinned_strips.h"
#include "engine/stream_books.h"
#include "engine/trial.h"
#include "expert/store.h"

namespace moepic {

// Memory on the device, besides the arena.
struct DeviceFrames {
    uint64_t frame_bytes = 0;  // one granule
    int n_queue = 0;           // for granules of the pass that do not stay, an even number
    int n_ahead = 0;           // for granules fetched ahead
    uint64_t table_bytes = 0;  // of DeviceResident
    uint64_t frames_bytes() const { return frame_bytes * static_cast<uint64_t>(n_queue + n_ahead); }
    uint64_t bytes() const { return frames_bytes() + table_bytes; }
};

class DeviceExperts final : public ExpertService {
public:
    static DeviceFrames measure(const std::vector<StreamLayer>& layers, const StreamOptions& options);

    // layers[i].stored.strips: in host memory, of which `pinned` says what can be read by the link as it lies. options.cpu_bytes_s above 0:
    // the CPU takes part, and this is its rate until it has been measured; it is never believed to be faster than most_cpu_bytes_s. Throws
    // no_memory (names the arena), device.
    DeviceExperts(const device::Library& library, std::string device_name, const PinnedStrips& pinned, std::vector<StreamLayer> layers,
                  int64_t cache_bytes, const StreamOptions& options, double most_cpu_bytes_s, Graphs graphs);
    ~DeviceExperts() override;

    // Loads what the profile put into the cache. Called once, before any pass; false from progress cancels.
    void warm_up(const std::function<bool(uint64_t done, uint64_t total)>& progress);

    // Between passes, for memory that the device needs elsewhere: gives up the cache's coldest granules and frees pieces of the arena that
    // have `bytes` together, or all that are left. Returns what was freed, 0 where there is nothing. Any thread that has opened the device.
    uint64_t give_back(uint64_t bytes);
    uint64_t arena_bytes();

    // The CPU's part in a batch.
    struct CpuLane {
        bool is_ready = false;  // the batch's activations are where it reads them
        int n_threads = 0;
        int64_t most_entries = 0;  // of a prompt: how many sums it has room for
    };
    struct Batch {
        int layer = 0;
        std::span<const int32_t> ids;      // [n_tokens][n_used]
        std::span<const int32_t> experts;  // the distinct ids, ascending; an index here is a `want`
        std::span<const int32_t> entries;  // [want] tokens that use it
        int n_tokens = 0;
        bool is_decode = false;
        const device::OwnedStream* compute = nullptr;
        CpuLane cpu;
    };
    // A granule of the pass and where kernels find it.
    struct Placed {
        int32_t want = 0;
        int32_t granule = 0;
        const std::byte* data = nullptr;
    };
    struct Range {
        int first = 0, count = 0;
        explicit operator bool() const { return count > 0; }
    };

    class Pass {
    public:
        // Waits for other contexts' passes.
        Pass(DeviceExperts& experts, const Batch& batch);
        ~Pass();
        Pass(const Pass&) = delete;
        Pass& operator=(const Pass&) = delete;

        // Every granule of the wanted experts: residents first, then what was fetched ahead, then the queue, head to tail. Of a prompt
        // (more than kFewTokens) granules of an expert ascend through the whole list.
        std::span<const Placed> placed() const { return e_.placed_; }
        Range residents() const { return {0, e_.n_resident_}; }
        // Fetched ahead; the compute stream waits for them from here on.
        Range await_ahead();
        // Kernels that read the residents have been launched. What arrives later than they end is stall.
        void residents_launched();
        // The head of the queue, given to the link; the compute stream waits for it from here on. Nothing: the queue is empty, or what is
        // left is better left to the CPU for now.
        Range next();
        // Kernels that read the range have been launched.
        void launched(Range range);
        // Every granule has been given to somebody.
        bool is_queue_empty() const;
        // One granule from the tail for the CPU: an index into placed(); -1: nothing now. Of a prompt, granules of an expert come one after
        // another, ascending. Any thread, which gives it back with done_in_place.
        int take_in_place();
        void done_in_place(int placed, double seconds);
        const std::byte* host_data(int placed) const { return e_.host_data(placed - e_.first_missing_); }
        // Partials of what the CPU computed are on their way in front of this point of the compute stream.
        void returned();

        // As Streamer::Pass.
        bool wants_guess(int layer, bool to_record = false) const { return e_.books_.wants_guess(layer, to_record); }
        bool uses_cpu_lane() const { return e_.uses_cpu_lane_; }
        void prefetch(int layer, std::span<const int32_t> ids);
        void prefetch_all(int layer);
        std::span<const int32_t> guess(int layer) const { return e_.books_.guess(layer); }
        // Every kernel of the layer has been launched.
        PassReport finish();

    private:
        DeviceExperts& e_;
        std::unique_lock<std::mutex> owner_;
        bool is_finished_ = false;
    };

    // Layers of few tokens that the device runs by itself, since all their experts are resident and nobody needs the host to know the
    // routing at once. What they used is accounted later, from letters.
    class ResidentPass {
    public:
        // Waits for other contexts' passes. False where one of the layers [first, first + n) needs a Pass.
        ResidentPass(DeviceExperts& experts, int first, int n, int n_tokens, bool is_decode, const device::OwnedStream& compute);
        ~ResidentPass();
        ResidentPass(const ResidentPass&) = delete;
        ResidentPass& operator=(const ResidentPass&) = delete;
        explicit operator bool() const { return owner_.owns_lock(); }

        // Fills in where a layer's granules lie, and the letters. It is the same in every pass.
        void address(int layer, device::TaskListJob& job) const;
        // Every kernel of the layers has been launched.
        void finish();

        // Whether a token should be a graph.
        bool wants_graph() const { return e_.wants_graph(); }
        void captured() { ++e_.n_graphs_; }
        // No token will be a graph any more, because of `why`; false: as somebody insisted on graphs, they are still wanted.
        bool give_up_graphs(const Error& why);

    private:
        DeviceExperts& e_;
        std::unique_lock<std::mutex> owner_;
        const int first_, n_;
        const bool is_decode_;
        const device::OwnedStream& compute_;
        bool is_finished_ = false;
    };

    // As Pass::wants_guess, between passes.
    bool wants_guess(int layer);
    // While the host waits for the device anyway: gives the link the next granule that is fetched ahead.
    void pump();
    void begin_tokens(int64_t n) override;
    int lookahead() const { return options_.lookahead; }
    int n_layer() const override { return static_cast<int>(layers_.size()); }
    int32_t il(int layer) const override { return layers_[static_cast<size_t>(layer)].il; }
    bool has_cpu_lane() const { return options_.cpu_bytes_s > 0.0; }
    // Whether the CPU may have to compute something of that layer: not where everything is resident.
    bool may_share(int layer);

    // Of a token that had every layer in one ResidentPass, to its logits.
    void note_token(double seconds, bool was_graph);
    // Of one layer of decode.
    void note_round_trip(double waited_s, double planned_s);
    StreamStats stats() override;
    void reset_stats() override;
    std::vector<double> uses() override;
    void check() override;

private:
    // Bytes the link is given at once: kernels are launched once per chunk, which costs a few microseconds; a chunk of this size takes 40
    // us of a 25 GB/s link.
    static constexpr int64_t kChunkBytes = int64_t{1} << 20;

    struct Missing {
        int32_t expert = 0;
        int frame = -1;  // number in the order of use; -1: it goes to its slot and stays
        std::byte* to = nullptr;
        bool is_loaded = false;
        double cpu_s = 0.0;  // a thread's, by what was known when the pass began
    };
    struct Key {
        int layer;
        int32_t expert;
        int granule;
        auto operator<=>(const Key&) const = default;
    };
    // A granule that was or will be fetched ahead. frame -1: it waits for its turn.
    struct Ahead {
        int frame = -1;
    };
    struct Adopted {
        int32_t want;
        int32_t granule;
        int frame;
        std::byte* slot;  // where it is to stay; null: it passes through
    };
    struct Moving {
        int event;
        int64_t bytes;
        int64_t submitted_ns;
    };

    bool needs_no_host(int layer);
    bool wants_graph() const { return graphs_ == Graphs::automatic ? graph_trial_.is_on() : graphs_ == Graphs::always; }
    void account_letters();
    void await_letters();
    void begin_pass(const Batch& batch);
    int order_prompt(const Batch& batch);
    bool is_fetched(int32_t expert, int granule) const;
    PassReport end_pass(bool is_abandoned);
    bool adopt(int32_t expert, int granule, std::byte* slot, int32_t want);
    void drop_guesses(int layer);
    void take_stall();
    Range next();
    bool is_link_wanted() const;
    bool is_cpu_wanted() const;
    int take_in_place();
    void poll_link();
    void copy(std::byte* to, int layer, int32_t expert, int granule, const device::OwnedStream& stream);
    void copy(std::byte* to, const std::byte* from, size_t bytes, const device::OwnedStream& stream);
    const std::byte* host_data(int missing) const;
    void fetch_ahead(int layer, std::span<const int32_t> ids);
    void measure_link();
    void move(std::span<const cache::Residency::Move> moves);
    std::byte* frame(int number) const { return frames_.data() + needs_.frame_bytes * static_cast<uint64_t>(number); }
    std::byte* slot(int layer, int32_t expert, int granule) const {
        return arena_->slot(books_.cache().residency().find(layer, expert, granule).slot);
    }
    int64_t granule_bytes(int layer) const { return static_cast<int64_t>(store_->layout(layer).granule_bytes); }
    int half_of(int number) const { return number / (needs_.n_queue / 2) % 2; }
    double link_seconds(int64_t bytes) const { return static_cast<double>(bytes) / link_rate_; }
    double cpu_seconds(int missing) const;
    // Granules of the queue that the CPU takes as one, and those of the head's that the link has taken already.
    int unit() const { return is_many_ ? n_granules_ : 1; }
    int begun() const { return (head_ - first_in_place_) % unit(); }

    const device::Library& library_;
    const std::string device_name_;
    const PinnedStrips& pinned_;
    const StreamOptions options_;
    const std::vector<StreamLayer> layers_;
    const std::unique_ptr<ExpertStore> store_;
    const DeviceFrames needs_;

    std::mutex owner_;
    // Under owner_.
    StreamBooks books_;
    DeviceResident resident_;
    std::optional<DeviceArena> arena_;
    uint64_t given_back_bytes_ = 0;
    device::DeviceMemory frames_;
    device::OwnedStream demand_, ahead_;
    // What is not pinned goes through these, in turn: the CPU copies in, the link out.
    device::HostMemory bounce_;
    std::vector<device::OwnedEvent> bounced_;
    size_t next_bounce_ = 0;
    device::OwnedEvent last_use_;                         // the kernels of the last pass
    std::vector<device::OwnedEvent> half_done_;           // [2] kernels that read that half of the queue's frames
    std::vector<device::OwnedEvent> chunk_, ahead_done_;  // copies: of the queue, in turn; [frame] fetched ahead
    device::OwnedEvent residents_done_, last_arrival_;    // of the last pass that had both: the time between them is stall
    struct Stall {
        int layer;
        bool is_decode;
    };
    std::optional<Stall> stall_;
    std::map<Key, Ahead> guesses_;
    std::deque<Key> to_fetch_;
    std::vector<int> free_ahead_, retired_ahead_;  // frames; retired: read by the kernels of this pass
    std::deque<int> fetching_;                     // frames under way
    std::vector<int64_t> prefetched_at_ns_;        // [layer]
    int64_t n_transfers_ = 0, n_dropped_ = 0;
    uint64_t moved_bytes_ = 0, dropped_bytes_ = 0;
    RoundTrips round_trips_;
    Graphs graphs_;
    Trial graph_trial_;  // where graphs_ is automatic
    int64_t n_graph_tokens_ = 0, n_graphs_ = 0;

    // Of the running pass; written before other threads take part.
    int layer_ = -1, n_tokens_ = 0, n_granules_ = 0;
    bool is_decode_ = false, is_many_ = false, uses_cpu_lane_ = false;
    int cpu_threads_ = 1;  // that work at the queue's tail together
    const device::OwnedStream* compute_ = nullptr;
    std::span<const int32_t> experts_, entries_;
    std::vector<int32_t> ids_, found_, want_of_;
    std::vector<cache::Routed> order_;
    std::vector<Placed> placed_;
    std::vector<Adopted> adopted_;
    std::vector<Missing> missing_;  // of placed_[first_missing_ + i]
    int n_resident_ = 0, first_missing_ = 0;
    int first_in_place_ = 0;  // of missing_: what is before it is the link's
    StreamTally tally_;
    double window_s_ = 0.0;
    int n_chunks_ = 0;

    mutable std::mutex state_;
    // Under state_.
    int head_ = 0, tail_ = 0;              // of missing_: [head, tail) is nobody's yet
    int in_place_ = 0, in_place_end_ = 0;  // of missing_: the CPU's already, and no thread's yet
    int64_t queued_bytes_ = 0, moving_bytes_ = 0;
    double queued_cpu_s_ = 0.0;  // of a thread, for what is queued
    std::deque<Moving> moving_;
    double link_rate_ = 0.0;  // bytes per second
    CpuCost cpu_cost_;
    int64_t last_arrival_ns_ = 0;
};

}  // namespace moepic
