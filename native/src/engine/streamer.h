// Runs experts that do not all fit: owns arena, residency, lanes, policy and predictor of a model, and hands a layer's granules to the
// compute threads as they become ready: residents at once, others when their lane has brought them, or computed in place by the CPU lane.
//
// A layer goes through a Pass, which owns the residency from begin() to its end; passes of several contexts take turns by layer.
//   few tokens    every thread loops over take() / done(); a granule is landed (re-tiled) by the thread that computes it
//   many tokens   next_wave() gives runs of granules that are all there, ascending inside each expert, until none is left
// What a pass could not load (an error, a cancel) is forgotten by the residency, and the streamer stays usable.
//
// Threads and what orders them:
//   owner_         held by a pass: cache, predictor, prefetch bookkeeping, tallies
//   state_         guards what compute threads and lanes share: fetches, arrivals, desks, the in-place queue, the error
//   lanes call     on_ready on their own threads; it takes state_ alone. Order of locks: owner_, state_, then a lane's own
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/region.h"
#include "base/thread_pool.h"
#include "cache/cache.h"
#include "engine/stream_books.h"
#include "engine/streaming.h"
#include "engine/timeline.h"
#include "expert/arena.h"
#include "expert/store.h"
#include "predict/predictor.h"
#include "transfer/file_lane.h"
#include "transfer/lane.h"
#include "transfer/link_lane.h"

namespace moepic {

// Memory besides the arena.
struct StreamNeeds {
    uint64_t frame_bytes = 0;  // payload of one frame
    int n_frames = 0;
    uint64_t staging_bytes = 0;  // all frames
    uint64_t desk_bytes = 0;     // landing buffers
    uint64_t least_bytes = 0;    // staging and desks at their smallest
    uint64_t bytes() const { return staging_bytes + desk_bytes; }
};

class Streamer final : public ExpertService {
public:
    // A routed expert of the pass, and where its granules lie once they are ready.
    struct Want {
        int32_t expert = 0;
        const std::byte** data = nullptr;  // [n_granules]
    };
    struct Item {
        int32_t want = -1;
        int32_t granule = 0;
        int32_t desk = -1;            // held until done()
        transfer::Ticket ticket = 0;  // the same, where it is computed in its frame
        const std::byte* data = nullptr;
        explicit operator bool() const { return want >= 0; }
    };
    // Granules [first, first + count) of a want, all ready.
    struct WaveRun {
        int32_t want = 0, first = 0, count = 0;
    };
    using Compute = std::function<void(const Item&, int thread)>;
    // Runs task(index, thread) for every index below n on the caller's threads.
    using RunTasks = std::function<void(int64_t n, const std::function<void(int64_t, int)>& task)>;

    static StreamNeeds measure(const std::vector<StreamLayer>& layers, const StreamOptions& options, int n_threads, bool smallest);

    // paths: the file's shards. cache_bytes: of the arena. n_threads: compute threads of a context. smallest: staging and desks no larger
    // than it takes to run at all.
    Streamer(const ops::Kernels& kernels, std::vector<StreamLayer> layers, std::vector<std::string> paths, int64_t cache_bytes,
             int n_threads, bool smallest, const StreamOptions& options);
    ~Streamer() override;
    Streamer(const Streamer&) = delete;
    Streamer& operator=(const Streamer&) = delete;

    // Loads what the profile put into the cache. Called once, before any pass; false from progress cancels.
    void warm_up(int n_threads, const std::function<bool(uint64_t done, uint64_t total)>& progress);

    // What goes through a layer together. ids [n_tokens][n_used of the layer]; wants: every distinct id once.
    struct Batch {
        int layer = 0;
        std::span<const int32_t> ids;
        int n_tokens = 0;
        bool is_decode = false;  // of a token that was given alone; the last layer of a prompt may also run just one
        std::span<const Want> wants;
        Timeline* timeline = nullptr;
        int64_t position = 0;
    };

    class Pass {
    public:
        // Waits for other contexts' passes.
        Pass(Streamer& streamer, const Batch& batch);
        ~Pass();
        Pass(const Pass&) = delete;
        Pass& operator=(const Pass&) = delete;

        // Any compute thread; an empty item when there is nothing left, or after a failure.
        Item take(int thread);
        void done(const Item& item);
        // The CPU lane computes too from here on, with `thread` as the number of its scratch.
        void start_in_place(const Compute& compute, int thread);
        bool uses_cpu_lane() const { return s_.uses_cpu_lane_; }

        // The owner alone. False: no granules are left, or the pass failed.
        bool next_wave(std::vector<WaveRun>& runs, const RunTasks& run_tasks);

        // Whether running that layer's router early could help: not where everything is resident, nor while prefetching is off, except
        // `to_record` what would be guessed.
        bool wants_guess(int layer, bool to_record = false) const { return s_.books_.wants_guess(layer, to_record); }
        // Guesses for MoE layer `layer`: what is missing of them is fetched behind this layer's own.
        void prefetch(int layer, std::span<const int32_t> ids);
        // The same for a prompt, which uses nearly all.
        void prefetch_all(int layer);
        // What the predictor expects of a layer without the engine's help (previous_token); empty: nothing.
        std::span<const int32_t> guess(int layer) const;
        // All granules are computed: keeps what came, ends the pins. Throws what a lane reported.
        PassReport finish();

    private:
        Streamer& s_;
        std::unique_lock<std::mutex> owner_;
        bool is_finished_ = false;
    };

    void begin_tokens(int64_t n) override;
    int lookahead() const { return options_.lookahead; }
    int n_layer() const override { return static_cast<int>(layers_.size()); }
    int32_t il(int layer) const override { return layers_[static_cast<size_t>(layer)].il; }
    bool has_cpu_lane() const { return options_.link_bytes_s > 0.0 && options_.cpu_bytes_s > 0.0; }

    using Stats = StreamStats;
    Stats stats() override;
    void reset_stats() override;
    std::vector<double> uses() override;
    void check() override;

private:
    // One transfer of a lane, from submit() until all its granules are used or nobody wants it.
    struct Fetch {
        int layer = 0;
        int32_t expert = 0;
        GranuleRun run;
        bool is_prefetch = false;
        bool is_ready = false;
        bool is_dropped = false;  // cancelled while it was being delivered
        int first_missing = -1;   // index into missing_; -1: no pass wants it yet
        int n_left = 0;           // granules still to be landed, or computed in the frame
        int64_t asked_ns = 0;
        std::vector<const std::byte*> pieces{};
    };
    struct Missing {
        int32_t want = 0;
        int32_t granule = 0;
        std::byte* slot = nullptr;  // where it stays; null: it passes through
        bool has_landed = false;
    };
    // A place to land at: the filler's buffer, and room for one granule that does not stay.
    struct Desk {
        StripFiller filler;
        std::byte* granule;
    };
    struct Arrival {
        transfer::Ticket ticket;
        int missing;
    };
    struct WaveItem {
        Arrival arrival;
        int desk;
        const std::byte* data;
    };
    struct Key {
        int layer;
        int32_t expert;
        int64_t first;
        auto operator<=>(const Key&) const = default;
    };
    struct Queued {  // a run that waits to be given to a lane
        int first_missing;
        int count;
        int64_t bytes;
    };

    void open_lane(std::vector<std::string> paths);
    void on_ready(const transfer::Delivery& delivery);
    // These hold state_.
    transfer::Ticket submit(int layer, int32_t expert, GranuleRun run, bool is_prefetch, int first_missing);
    void feed_link();
    void arrive(transfer::Ticket ticket, const Fetch& fetch);
    void consume(transfer::Ticket ticket);  // one granule of it is done with
    void drop(transfer::Ticket ticket);     // nobody wants it any more
    bool adopt(int32_t expert, GranuleRun run, int first_missing);
    bool should_compute_in_place(const Queued& run) const;
    double link_seconds(int64_t bytes) const;
    double cpu_seconds(int64_t bytes) const;
    void begin_stall();
    void end_stall();
    void end_wait(int64_t from_ns, int thread);
    void forget_transfers();

    void begin_pass(const Batch& batch);
    PassReport end_pass(bool is_abandoned);
    void prefetch(int layer, std::span<const int32_t> ids);
    void drop_guesses(int layer);
    Item take_missing(int thread);
    static Fetched fetched(const Fetch& fetch);
    const Fetch& fetch_of(transfer::Ticket ticket);
    const std::byte* land(const Arrival& arrival, const Fetch& fetch, int desk, int thread);
    bool first_wave(std::vector<WaveRun>& runs);
    bool gather_wave(std::vector<WaveRun>& runs, const RunTasks& run_tasks);
    void end_wave();
    void in_place_loop();
    uint64_t load_residents(int layer, ThreadPool& pool);
    int64_t granule_bytes(int layer) const { return static_cast<int64_t>(store_->layout(layer).granule_bytes); }

    const StreamOptions options_;
    const std::vector<StreamLayer> layers_;
    const std::unique_ptr<ExpertStore> store_;
    const StreamNeeds needs_;
    Arena arena_;
    Region desk_memory_;
    std::vector<Desk> desks_;

    std::mutex owner_;
    // Under owner_.
    StreamBooks books_;
    std::map<Key, transfer::Ticket> guesses_;  // fetched ahead, for later layers
    std::vector<int64_t> prefetched_at_ns_;    // [layer]

    mutable std::mutex state_;
    std::condition_variable changed_;   // compute threads and the owner wait here
    std::condition_variable in_place_;  // the CPU lane waits here
    // Under state_.
    std::unordered_map<transfer::Ticket, Fetch> fetches_;
    std::deque<Arrival> arrived_;  // granules of the pass that are there and not taken
    std::deque<Queued> queue_;     // of the pass, hottest first: the link takes the head, the CPU the tail
    std::vector<int> free_desks_;
    int64_t queued_bytes_ = 0, moving_bytes_ = 0;
    int n_moving_demand_ = 0, n_prefetches_ = 0;  // transfers; prefetches that no pass has adopted
    int n_unclaimed_ = 0;                         // missing granules of the pass that no thread has taken
    int n_waiting_ = 0;
    int64_t stall_from_ns_ = 0;   // 0: some thread is computing
    int64_t last_demand_ns_ = 0;  // when the last demand transfer arrived
    std::shared_ptr<const Error> error_;
    Compute compute_;  // of the CPU lane; empty between passes
    int in_place_thread_ = 0, n_in_place_busy_ = 0;
    double cpu_rate_ = 0.0;  // bytes per second, measured
    Timeline* timeline_ = nullptr;
    int64_t position_ = 0;
    bool is_stopping_ = false;

    // Of the running pass: written by its owner before other threads start, then read only; but has_landed is written by the thread that
    // landed the granule, and tally_ under state_.
    int layer_ = -1, n_tokens_ = 0;
    bool is_decode_ = false, uses_cpu_lane_ = false;
    std::span<const Want> wants_;
    std::vector<int32_t> ids_;
    std::vector<Item> ready_;
    std::vector<Missing> missing_;
    std::vector<cache::Routed> order_;
    std::vector<int32_t> want_of_;     // [expert] index into wants_, -1
    std::vector<int32_t> found_;       // [expert] granules found resident; of those used
    std::vector<int32_t> n_resident_;  // [want]
    StreamTally tally_;
    double window_s_ = 0.0;
    std::atomic<int32_t> next_ready_{0};  // claimed by compute threads
    std::atomic<int32_t> n_busy_{0};      // compute threads at a granule
    // The owner's alone.
    bool first_wave_done_ = false;
    std::vector<int32_t> next_granule_;  // [want] how far waves have come
    std::vector<WaveItem> wave_;

    std::unique_ptr<transfer::Lane> lane_;
    std::thread in_place_worker_;
};

}  // namespace moepic
