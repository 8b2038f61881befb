#include "engine/streamer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "base/thread_pool.h"

namespace moepic {
namespace {

constexpr uint64_t kStagingBytes = uint64_t{32} << 20;
constexpr int kMostFrames = 32;
constexpr int kMostDesks = 16;
// Transfers given to a link at once while a CPU lane may still take the rest: enough that the link never idles.
constexpr int kLinkAhead = 3;
constexpr double kRateMemory = 0.9;  // of the CPU lane's measured rate, per run

cache::Shape shape_of(const std::vector<StreamLayer>& layers) {
    cache::Shape shape;
    for (const StreamLayer& layer : layers) {
        shape.push_back(
            {layer.n_expert, static_cast<int>(layer.stored.layout.n_granules), static_cast<int64_t>(layer.stored.layout.granule_bytes)});
    }
    return shape;
}

std::unique_ptr<ExpertStore> make_store(const std::vector<StreamLayer>& layers, bool link) {
    std::vector<StoredLayer> stored;
    for (const StreamLayer& layer : layers) stored.push_back(layer.stored);
    return link ? make_memory_store(std::move(stored)) : make_file_store(std::move(stored));
}

bool reads_whole_experts(const ExpertStore& store) {
    for (int il = 0; il < store.n_layer(); ++il) {
        if (store.unit(il, 0).count > 1) return true;
    }
    return false;
}

int most_used(const std::vector<StreamLayer>& layers) {
    int most = 0;
    for (const StreamLayer& layer : layers) most = std::max(most, layer.n_used);
    return most;
}

StreamNeeds needs_of(const ExpertStore& store, const StreamOptions& options, int n_threads, bool smallest) {
    StreamNeeds needs;
    needs.frame_bytes = store.longest_bytes();
    const uint64_t frame = transfer::file_frame_bytes(needs.frame_bytes, store.most_pieces());
    const uint64_t staging = options.staging_bytes ? options.staging_bytes : kStagingBytes;
    needs.n_frames = smallest ? 2 : static_cast<int>(std::clamp<uint64_t>(staging / frame, 2, kMostFrames));
    needs.staging_bytes = frame * static_cast<uint64_t>(needs.n_frames);
    uint64_t granule = 0;
    for (int il = 0; il < store.n_layer(); ++il) granule = std::max<uint64_t>(granule, store.layout(il).granule_bytes);
    // A desk has a filler's buffer too, of one part of a granule.
    const int desks = smallest ? n_threads : std::max(n_threads, kMostDesks);
    needs.desk_bytes = 2 * granule * static_cast<uint64_t>(desks);
    needs.least_bytes = 2 * frame + 2 * granule * static_cast<uint64_t>(n_threads);
    return needs;
}

}  // namespace

void StreamTally::add(const StreamTally& o) {
    n_hit += o.n_hit, n_partial += o.n_partial, n_miss += o.n_miss;
    n_resident += o.n_resident, n_link += o.n_link, n_in_place += o.n_in_place, n_prefetched += o.n_prefetched;
    demand_bytes += o.demand_bytes, useful_bytes += o.useful_bytes, wasted_bytes += o.wasted_bytes, late_bytes += o.late_bytes;
    stall_s += o.stall_s;
}

StreamNeeds Streamer::measure(const std::vector<StreamLayer>& layers, const StreamOptions& options, int n_threads, bool smallest) {
    return needs_of(*make_store(layers, options.link_bytes_s > 0.0), options, n_threads, smallest);
}

Streamer::Streamer(const ops::Kernels& kernels, std::vector<StreamLayer> layers, std::vector<std::string> paths, int64_t cache_bytes,
                   int n_threads, bool smallest, const StreamOptions& options)
    : options_(options),
      layers_(std::move(layers)),
      store_(make_store(layers_, options.link_bytes_s > 0.0)),
      needs_(needs_of(*store_, options, n_threads, smallest)) {
    const cache::Shape shape = shape_of(layers_);
    cache::CacheOptions cache_options = options.cache;
    if (options.choose_eviction && reads_whole_experts(*store_)) cache_options.eviction = cache::Eviction::whole;
    cache_.emplace(shape, cache_bytes, most_used(layers_), cache_options);
    std::vector<ArenaPool> pools;
    for (const cache::Pool& pool : cache_->pools().pools) pools.push_back({static_cast<size_t>(pool.slot_bytes), pool.n_slot});
    arena_ = Arena(pools);
    if (!cache_->pools().note.empty()) {
        if (options.strict) fail(Code::budget, cache_->pools().note);
        log_message(LogLevel::warning, cache_->pools().note);
    }
    predictor_.emplace(n_layer(), options.predict);
    if (options.choose_policy) chooser_.emplace(shape, cache_bytes, cache_options, most_used(layers_));

    size_t experts = 0, granule = 0;
    for (const StreamLayer& layer : layers_) {
        first_expert_.push_back(experts);
        experts += static_cast<size_t>(layer.n_expert);
        granule = std::max(granule, layer.stored.layout.granule_bytes);
    }
    uses_.assign(experts, 0.0);
    decode_.resize(layers_.size());
    prefill_.resize(layers_.size());
    prefetched_at_ns_.assign(layers_.size(), 0);

    const int n_desks = static_cast<int>(needs_.desk_bytes / (2 * granule));
    desk_memory_ = Region(granule * static_cast<size_t>(n_desks), "landing buffers");
    for (int i = 0; i < n_desks; ++i) {
        Desk& desk = desks_.emplace_back(Desk{StripFiller(kernels), desk_memory_.data() + granule * static_cast<size_t>(i)});
        for (const StreamLayer& layer : layers_) desk.filler.reserve(*layer.stored.binding, layer.stored.layout);
        free_desks_.push_back(i);
    }
    open_lane(std::move(paths));
    if (has_cpu_lane()) {
        cpu_rate_ = options_.cpu_bytes_s;
        in_place_worker_ = std::thread([this] { in_place_loop(); });
    }
}

void Streamer::open_lane(std::vector<std::string> paths) {
    const auto ready = [this](const transfer::Delivery& delivery) { on_ready(delivery); };
    if (options_.link_bytes_s > 0.0) {
        transfer::LinkLaneOptions link;
        for (const StreamLayer& layer : layers_) {
            link.sources.emplace_back(layer.stored.strips, layer.stored.layout.strip_bytes() * static_cast<size_t>(layer.n_expert));
        }
        link.frame_bytes = needs_.frame_bytes;
        link.max_pieces = store_->most_pieces();
        link.n_frames = needs_.n_frames;
        link.bytes_s = options_.link_bytes_s;
        link.latency_s = options_.link_latency_s;
        lane_ = transfer::open_link_lane(link, ready);
        return;
    }
    transfer::FileLaneOptions file;
    file.paths = std::move(paths);
    file.frame_bytes = needs_.frame_bytes;
    file.max_pieces = store_->most_pieces();
    file.n_frames = needs_.n_frames;
    file.io = options_.io;
    file.direct = options_.direct;
    file.strict = options_.strict;
    lane_ = transfer::open_file_lane(file, ready);
}

Streamer::~Streamer() {
    {
        const std::lock_guard lock(state_);
        is_stopping_ = true;
    }
    in_place_.notify_all();
    if (in_place_worker_.joinable()) in_place_worker_.join();
    lane_.reset();  // nothing calls on_ready any more
}

// ---- transfers; all of these hold state_ -----------------------------------------------------------------------------------------------

transfer::Ticket Streamer::submit(int layer, int32_t expert, GranuleRun run, bool is_prefetch, int first_missing) {
    std::vector<StoredPiece> stored;
    store_->list(layer, expert, run, stored);
    std::vector<transfer::Piece> pieces;
    for (const StoredPiece& piece : stored) pieces.push_back({piece.source, piece.offset, piece.bytes});
    const transfer::Ticket ticket = lane_->submit(pieces, is_prefetch ? transfer::Urgency::prefetch : transfer::Urgency::demand);
    Fetch& fetch = fetches_[ticket];
    fetch.layer = layer;
    fetch.expert = expert;
    fetch.run = run;
    fetch.is_prefetch = is_prefetch;
    fetch.first_missing = first_missing;
    fetch.n_left = static_cast<int>(run.count);
    fetch.asked_ns = now_ns();
    if (first_missing >= 0) {
        ++n_moving_demand_;
        moving_bytes_ += run.count * granule_bytes(layer);
    } else {
        ++n_prefetches_;
    }
    return ticket;
}

// A link alone gets everything at once and keeps its own order. Beside a CPU lane it gets the head of the queue only as far as it would be
// there before the CPU could have computed all the rest; should_compute_in_place() is the same question asked from the other end, so that
// both lanes end together. Whoever is wrong about its rate is corrected by what is left in the queue.
void Streamer::feed_link() {
    const bool shares = has_cpu_lane() && n_tokens_ <= kFewTokens;
    while (!queue_.empty()) {
        const Queued next = queue_.front();
        if (shares) {
            if (n_moving_demand_ >= kLinkAhead) return;
            const bool pays = link_seconds(moving_bytes_ + next.bytes) <= cpu_seconds(queued_bytes_);
            if (!pays && (n_moving_demand_ > 0 || should_compute_in_place(queue_.back()))) return;
        }
        queue_.pop_front();
        queued_bytes_ -= next.bytes;
        const Missing& first = missing_[static_cast<size_t>(next.first_missing)];
        submit(layer_, wants_[static_cast<size_t>(first.want)].expert, {first.granule, next.count}, false, next.first_missing);
    }
}

double Streamer::link_seconds(int64_t bytes) const {
    const double rate = lane_->rate() > 0.0 ? lane_->rate() : options_.link_bytes_s;
    return static_cast<double>(bytes) / rate;
}

double Streamer::cpu_seconds(int64_t bytes) const {
    return static_cast<double>(bytes) / cpu_rate_;
}

void Streamer::arrive(transfer::Ticket ticket, const Fetch& fetch) {
    for (int j = 0; j < static_cast<int>(fetch.run.count); ++j) arrived_.push_back({ticket, fetch.first_missing + j});
}

void Streamer::on_ready(const transfer::Delivery& delivery) {
    {
        const std::lock_guard lock(state_);
        if (is_stopping_) return;  // the lane is going away and must not be called
        const auto it = fetches_.find(delivery.ticket);
        if (it == fetches_.end()) return;
        Fetch& fetch = it->second;
        const bool is_wanted = fetch.first_missing >= 0 && !fetch.is_dropped;
        if (is_wanted) {
            last_demand_ns_ = now_ns();
            if (!fetch.is_prefetch) {
                --n_moving_demand_;
                moving_bytes_ -= fetch.run.count * granule_bytes(fetch.layer);
            }
        }
        if (timeline_) {
            timeline_->record({.start_ns = fetch.asked_ns,
                               .end_ns = now_ns(),
                               .bytes = static_cast<uint64_t>(fetch.run.count * granule_bytes(fetch.layer)),
                               .position = position_,
                               .kind = fetch.is_prefetch ? Span::prefetch : Span::demand,
                               .layer = layers_[static_cast<size_t>(fetch.layer)].il,
                               .expert = fetch.expert,
                               .granule = static_cast<int32_t>(fetch.run.first)});
        }
        if (delivery.error || fetch.is_dropped) {
            // A prefetch that failed and that nobody asked for yet is forgotten: asked for, it is tried again.
            if (delivery.error && is_wanted) error_ = delivery.error;
            if (fetch.first_missing < 0) --n_prefetches_;
            lane_->release(delivery.ticket);
            fetches_.erase(it);
        } else {
            fetch.is_ready = true;
            fetch.pieces = delivery.pieces;
            if (is_wanted) arrive(delivery.ticket, fetch);
        }
        feed_link();
    }
    changed_.notify_all();
}

void Streamer::consume(transfer::Ticket ticket) {
    const auto it = fetches_.find(ticket);
    if (--it->second.n_left > 0) return;
    lane_->release(ticket);
    fetches_.erase(it);
}

void Streamer::drop(transfer::Ticket ticket) {
    const auto it = fetches_.find(ticket);
    if (it == fetches_.end()) return;
    Fetch& fetch = it->second;
    if (!fetch.is_ready && !lane_->cancel(ticket)) {  // it is being delivered at this moment: on_ready will drop it
        fetch.is_dropped = true;
        return;
    }
    if (fetch.is_ready) lane_->release(ticket);
    if (fetch.first_missing < 0) --n_prefetches_;
    fetches_.erase(it);
}

// ---- a pass ----------------------------------------------------------------------------------------------------------------------------

void Streamer::begin_tokens(int64_t n) {
    const std::lock_guard lock(owner_);
    clock_ += n;
    if (!chooser_) return;
    if (const auto better = chooser_->poll(cache_->policy(), lane_->rate())) {
        cache_->change_policy(*better, chooser_->recent(), clock_);
        ++n_policy_changes_;
    }
}

bool Streamer::Pass::wants_guess(int layer) const {
    return layer < s_.n_layer() && s_.options_.predict.source == predict::Source::next_layer && !s_.cache_->is_complete(layer);
}

Streamer::Pass::Pass(Streamer& streamer, const Batch& batch) : s_(streamer), owner_(streamer.owner_) {
    s_.begin_pass(batch);
}

Streamer::Pass::~Pass() {
    if (!is_finished_) s_.end_pass(true);
}

void Streamer::begin_pass(const Batch& batch) {
    const int layer = batch.layer, n_tokens = batch.n_tokens;
    const std::span<const int32_t> ids = batch.ids;
    const std::span<const Want> wants = batch.wants;
    const int64_t start_ns = now_ns();
    const int n_used = layers_[static_cast<size_t>(layer)].n_used, n_granules = static_cast<int>(store_->layout(layer).n_granules);
    layer_ = layer;
    n_tokens_ = n_tokens;
    is_decode_ = batch.is_decode;
    wants_ = wants;
    ids_.assign(ids.begin(), ids.end());
    ready_.clear();
    missing_.clear();
    tally_ = {};
    first_wave_done_ = false;
    next_ready_.store(0, std::memory_order_relaxed);
    n_busy_.store(0, std::memory_order_relaxed);
    if (is_decode_ && chooser_) chooser_->remember(layer, ids);
    for (const int32_t id : ids) uses_[first_expert_[static_cast<size_t>(layer)] + static_cast<size_t>(id)] += 1.0;

    // A prompt, and a machine whose CPU computes what is not worth keeping, admit by worth.
    const bool bypass = options_.cache.bypass || n_tokens >= kManyTokens || has_cpu_lane();
    const auto routed = cache_->route(clock_, layer, ids, n_used, bypass);
    n_resident_.assign(wants.size(), 0);
    want_of_.assign(static_cast<size_t>(layers_[static_cast<size_t>(layer)].n_expert), -1);
    found_.assign(want_of_.size(), 0);
    for (size_t w = 0; w < wants.size(); ++w) want_of_[static_cast<size_t>(wants[w].expert)] = static_cast<int32_t>(w);

    // Hot experts first: the link takes them from the head of the queue, a CPU lane the cold ones from its tail.
    order_.assign(routed.begin(), routed.end());
    if (has_cpu_lane()) {
        std::stable_sort(order_.begin(), order_.end(), [&](const cache::Routed& a, const cache::Routed& b) {
            return cache_->worth(layer, a.expert) > cache_->worth(layer, b.expert);
        });
    } else if (n_tokens >= kManyTokens) {  // groups are computed in ascending order
        std::sort(order_.begin(), order_.end(), [](const cache::Routed& a, const cache::Routed& b) { return a.expert < b.expert; });
    }

    const cache::Residency& residency = cache_->residency();
    const auto slot_of = [&](int expert, int granule) { return arena_.slot(residency.find(layer, expert, granule).slot); };
    {
        const std::lock_guard lock(state_);
        timeline_ = batch.timeline && batch.timeline->is_on() ? batch.timeline : nullptr;
        position_ = batch.position;
        // How long the lane had for what was guessed: since it was asked, or since demand last kept it busy.
        const int64_t idle_from = std::max(prefetched_at_ns_[static_cast<size_t>(layer)], last_demand_ns_);
        window_s_ = 1e-9 * static_cast<double>(std::max<int64_t>(0, start_ns - idle_from));
        for (const cache::Routed& r : order_) {
            for (int g = r.n_resident; g < n_granules;) {
                const GranuleRun unit = store_->unit(layer, g);
                const int count = static_cast<int>(unit.first + unit.count) - g, first = static_cast<int>(missing_.size());
                for (int j = g; j < g + count; ++j) {
                    missing_.push_back(
                        {want_of_[static_cast<size_t>(r.expert)], j, j < r.n_resident + r.n_kept ? slot_of(r.expert, j) : nullptr});
                }
                if (!adopt(r.expert, {g, count}, first)) {
                    queue_.push_back({first, count, count * granule_bytes(layer)});
                    queued_bytes_ += count * granule_bytes(layer);
                    tally_.demand_bytes += count * granule_bytes(layer);
                }
                g += count;
            }
        }
        n_unclaimed_ = static_cast<int>(missing_.size());
        feed_link();
    }
    drop_guesses(layer);

    for (const cache::Routed& r : order_) {
        const int32_t w = want_of_[static_cast<size_t>(r.expert)];
        n_resident_[static_cast<size_t>(w)] = r.n_resident;
        found_[static_cast<size_t>(r.expert)] = r.n_resident;
        for (int g = 0; g < r.n_resident; ++g) {
            const std::byte* data = slot_of(r.expert, g);
            wants[static_cast<size_t>(w)].data[g] = data;
            ready_.push_back({.want = w, .granule = g, .data = data});
        }
        ++(r.n_resident == n_granules ? tally_.n_hit : r.n_resident > 0 ? tally_.n_partial : tally_.n_miss);
    }
    tally_.n_resident = static_cast<int64_t>(ready_.size());
}

// Takes over what was fetched ahead for these granules. Holds state_.
bool Streamer::adopt(int32_t expert, GranuleRun run, int first_missing) {
    const auto guess = guesses_.find({layer_, expert, run.first});
    if (guess == guesses_.end()) return false;
    const auto it = fetches_.find(guess->second);
    if (it == fetches_.end() || it->second.run != run) return false;  // it failed, or other granules are missing now
    Fetch& fetch = it->second;
    const int64_t bytes = run.count * granule_bytes(layer_);
    fetch.first_missing = first_missing;
    --n_prefetches_;
    tally_.n_prefetched += run.count;
    tally_.useful_bytes += bytes;
    if (fetch.is_ready) {
        arrive(guess->second, fetch);
    } else {
        tally_.late_bytes += bytes;
        lane_->promote(guess->second);
    }
    guesses_.erase(guess);
    return true;
}

// What was guessed for the layer and not adopted was wrong. Holds owner_.
void Streamer::drop_guesses(int layer) {
    const std::lock_guard lock(state_);
    for (auto it = guesses_.lower_bound({layer, 0, 0}); it != guesses_.end() && it->first.layer == layer; it = guesses_.erase(it)) {
        const auto fetch = fetches_.find(it->second);
        if (fetch == fetches_.end()) continue;
        // One that still waited behind demand cost nothing.
        if (lane_->has_begun(it->second)) tally_.wasted_bytes += fetch->second.run.count * granule_bytes(layer);
        drop(it->second);
    }
}

void Streamer::Pass::prefetch(int layer, std::span<const int32_t> ids) {
    s_.predictor_->foretell(layer, ids);
    if (s_.predictor_->should_prefetch(layer)) s_.prefetch(layer, s_.predictor_->guess(layer));
}

std::span<const int32_t> Streamer::Pass::guess(int layer) const {
    return s_.predictor_->guess(layer);
}

void Streamer::prefetch(int layer, std::span<const int32_t> ids) {
    const int n_granules = static_cast<int>(store_->layout(layer).n_granules);
    const int most = needs_.n_frames - std::max(1, needs_.n_frames / 4);
    const std::lock_guard lock(state_);
    prefetched_at_ns_[static_cast<size_t>(layer)] = now_ns();
    for (const int32_t expert : ids) {
        for (int64_t g = cache_->residency().n_resident(layer, expert); g < n_granules;) {
            if (n_prefetches_ >= most) return;
            const GranuleRun unit = store_->unit(layer, g), run{g, unit.first + unit.count - g};
            const Key key{layer, expert, g};
            if (!guesses_.contains(key)) guesses_[key] = submit(layer, expert, run, true, -1);
            g += run.count;
        }
    }
}

void Streamer::Pass::prefetch_all(int layer) {
    std::vector<int32_t> ids;
    for (int32_t e = 0; e < s_.layers_[static_cast<size_t>(layer)].n_expert; ++e) ids.push_back(e);
    s_.prefetch(layer, ids);
}

// ---- compute threads -------------------------------------------------------------------------------------------------------------------

Fetched Streamer::fetched(const Fetch& fetch) {
    return {fetch.layer, fetch.expert, fetch.run, fetch.pieces};
}

const std::byte* Streamer::land(const Arrival& arrival, const Fetch& fetch, int desk, int thread) {
    Missing& missing = missing_[static_cast<size_t>(arrival.missing)];
    Desk& at = desks_[static_cast<size_t>(desk)];
    std::byte* dst = missing.slot ? missing.slot : at.granule;
    const int64_t start = timeline_ ? now_ns() : 0;
    store_->land(fetched(fetch), missing.granule, at.filler, dst);
    missing.has_landed = true;
    if (timeline_) {
        timeline_->record({.start_ns = start,
                           .end_ns = now_ns(),
                           .bytes = static_cast<uint64_t>(granule_bytes(layer_)),
                           .position = position_,
                           .kind = Span::landing,
                           .lane = thread,
                           .layer = layers_[static_cast<size_t>(layer_)].il,
                           .expert = fetch.expert,
                           .granule = missing.granule});
    }
    return dst;
}

Streamer::Item Streamer::Pass::take(int thread) {
    const auto next = static_cast<size_t>(s_.next_ready_.fetch_add(1, std::memory_order_relaxed));
    if (next < s_.ready_.size()) {
        s_.n_busy_.fetch_add(1, std::memory_order_relaxed);
        return s_.ready_[next];
    }
    return s_.take_missing(thread);
}

Streamer::Item Streamer::take_missing(int thread) {
    std::unique_lock lock(state_);
    int64_t waited_from = 0;
    for (;;) {
        if (error_ || n_unclaimed_ == 0) break;
        if (!arrived_.empty()) {
            const Arrival arrival = arrived_.front();
            const Fetch& fetch = fetches_.at(arrival.ticket);
            const Missing& missing = missing_[static_cast<size_t>(arrival.missing)];
            const std::byte* in_frame = missing.slot ? nullptr : store_->landed(fetched(fetch), missing.granule);
            if (in_frame || !free_desks_.empty()) {
                arrived_.pop_front();
                n_busy_.fetch_add(1, std::memory_order_relaxed);
                end_stall();
                end_wait(waited_from, thread);
                if (--n_unclaimed_ == 0) changed_.notify_all();
                Item item{.want = missing.want, .granule = missing.granule};
                if (in_frame) {
                    item.ticket = arrival.ticket;
                    item.data = in_frame;
                    return item;
                }
                const int desk = free_desks_.back();
                free_desks_.pop_back();
                lock.unlock();
                item.data = land(arrival, fetch, desk, thread);
                lock.lock();
                consume(arrival.ticket);
                if (missing.slot) {
                    free_desks_.push_back(desk);
                    changed_.notify_one();
                } else {
                    item.desk = desk;
                }
                return item;
            }
        }
        if (!waited_from) waited_from = now_ns();
        begin_stall();
        ++n_waiting_;
        changed_.wait(lock);
        --n_waiting_;
    }
    end_wait(waited_from, thread);
    return {};
}

void Streamer::Pass::done(const Item& item) {
    const bool is_last_busy = s_.n_busy_.fetch_sub(1, std::memory_order_acq_rel) == 1;
    if (item.desk < 0 && !item.ticket && !is_last_busy) return;
    const std::lock_guard lock(s_.state_);
    if (item.ticket) s_.consume(item.ticket);
    if (item.desk >= 0) {
        s_.free_desks_.push_back(item.desk);
        s_.changed_.notify_one();
    }
    if (s_.n_waiting_ > 0) s_.begin_stall();
}

// A stall is wall time in which no compute thread has anything to do and some wait. Both hold state_.
void Streamer::begin_stall() {
    if (!stall_from_ns_ && n_busy_.load(std::memory_order_acquire) == 0) stall_from_ns_ = now_ns();
}

void Streamer::end_stall() {
    if (!stall_from_ns_) return;
    tally_.stall_s += 1e-9 * static_cast<double>(now_ns() - stall_from_ns_);
    stall_from_ns_ = 0;
}

void Streamer::end_wait(int64_t from, int thread) {
    if (!timeline_ || !from) return;
    timeline_->record({.start_ns = from,
                       .end_ns = now_ns(),
                       .position = position_,
                       .kind = Span::wait,
                       .lane = thread,
                       .layer = layers_[static_cast<size_t>(layer_)].il});
}

// ---- waves: many tokens ----------------------------------------------------------------------------------------------------------------

bool Streamer::Pass::next_wave(std::vector<WaveRun>& runs, const RunTasks& run_tasks) {
    s_.end_wave();
    runs.clear();
    return s_.first_wave(runs) || s_.gather_wave(runs, run_tasks);
}

bool Streamer::first_wave(std::vector<WaveRun>& runs) {
    if (first_wave_done_) return false;
    first_wave_done_ = true;
    next_granule_ = n_resident_;
    for (size_t w = 0; w < wants_.size(); ++w) {
        if (n_resident_[w] > 0) runs.push_back({static_cast<int32_t>(w), 0, n_resident_[w]});
    }
    return !runs.empty();
}

// Sums over granules run in ascending order inside an expert, so a granule joins a wave only after those before it.
bool Streamer::gather_wave(std::vector<WaveRun>& runs, const RunTasks& run_tasks) {
    {
        std::unique_lock lock(state_);
        int64_t waited_from = 0;
        for (;;) {
            if (error_ || n_unclaimed_ == 0) return false;
            for (bool found = true; found;) {
                found = false;
                for (auto it = arrived_.begin(); it != arrived_.end();) {
                    const Missing& missing = missing_[static_cast<size_t>(it->missing)];
                    int32_t& next = next_granule_[static_cast<size_t>(missing.want)];
                    const std::byte* in_frame = missing.slot ? nullptr : store_->landed(fetched(fetches_.at(it->ticket)), missing.granule);
                    if (missing.granule != next || (!in_frame && free_desks_.empty())) {
                        ++it;
                        continue;
                    }
                    wave_.push_back({*it, -1, in_frame});
                    if (!in_frame) {
                        wave_.back().desk = free_desks_.back();
                        free_desks_.pop_back();
                    }
                    ++next;
                    --n_unclaimed_;
                    it = arrived_.erase(it);
                    found = true;
                }
            }
            if (!wave_.empty()) break;
            if (!waited_from) waited_from = now_ns();
            begin_stall();
            changed_.wait(lock);
        }
        end_stall();
        end_wait(waited_from, 0);
    }
    run_tasks(static_cast<int64_t>(wave_.size()), [this](int64_t i, int thread) {
        WaveItem& item = wave_[static_cast<size_t>(i)];
        if (!item.data) item.data = land(item.arrival, fetch_of(item.arrival.ticket), item.desk, thread);
    });
    for (const WaveItem& item : wave_) {
        const Missing& missing = missing_[static_cast<size_t>(item.arrival.missing)];
        wants_[static_cast<size_t>(missing.want)].data[missing.granule] = item.data;
        const auto run = std::find_if(runs.begin(), runs.end(), [&](const WaveRun& r) { return r.want == missing.want; });
        if (run == runs.end()) {
            runs.push_back({missing.want, missing.granule, 1});
        } else {
            ++run->count;  // granules of a want come in order
        }
    }
    return true;
}

const Streamer::Fetch& Streamer::fetch_of(transfer::Ticket ticket) {
    const std::lock_guard lock(state_);
    return fetches_.at(ticket);
}

void Streamer::end_wave() {
    const std::lock_guard lock(state_);
    for (const WaveItem& item : wave_) {
        consume(item.arrival.ticket);
        if (item.desk >= 0) free_desks_.push_back(item.desk);
    }
    wave_.clear();
}

// ---- the CPU lane ----------------------------------------------------------------------------------------------------------------------

void Streamer::Pass::start_in_place(const Compute& compute, int thread) {
    {
        const std::lock_guard lock(s_.state_);
        s_.compute_ = compute;
        s_.in_place_thread_ = thread;
    }
    s_.in_place_.notify_one();
}

// The CPU takes a run when it would be done with it no later than the link with everything that is left.
bool Streamer::should_compute_in_place(const Queued& run) const {
    return cpu_seconds(run.bytes) <= link_seconds(moving_bytes_ + queued_bytes_);
}

void Streamer::in_place_loop() {
    std::unique_lock lock(state_);
    for (;;) {
        in_place_.wait(lock, [&] { return is_stopping_ || (compute_ && !queue_.empty() && should_compute_in_place(queue_.back())); });
        if (is_stopping_) return;
        const Queued run = queue_.back();
        queue_.pop_back();
        queued_bytes_ -= run.bytes;
        n_unclaimed_ -= run.count;
        tally_.n_in_place += run.count;
        tally_.demand_bytes -= run.bytes;
        n_in_place_busy_ = run.count;
        lock.unlock();
        const auto start = std::chrono::steady_clock::now();
        for (int j = 0; j < run.count; ++j) {
            const Missing& missing = missing_[static_cast<size_t>(run.first_missing + j)];
            const int32_t expert = wants_[static_cast<size_t>(missing.want)].expert;
            compute_({.want = missing.want, .granule = missing.granule, .data = store_->in_place(layer_, expert, missing.granule)},
                     in_place_thread_);
        }
        // An emulated CPU may be slower than the threads that stand in for the device, never faster.
        std::this_thread::sleep_until(start + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                  std::chrono::duration<double>(static_cast<double>(run.bytes) / options_.cpu_bytes_s)));
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        lock.lock();
        cpu_rate_ = kRateMemory * cpu_rate_ + (1.0 - kRateMemory) * static_cast<double>(run.bytes) / seconds;
        n_in_place_busy_ = 0;
        feed_link();  // what the CPU leaves from here on is the link's
        changed_.notify_all();
    }
}

// ---- the end of a pass -----------------------------------------------------------------------------------------------------------------

PassReport Streamer::Pass::finish() {
    is_finished_ = true;
    return s_.end_pass(false);
}

PassReport Streamer::end_pass(bool is_abandoned) {
    end_wave();
    std::shared_ptr<const Error> error;
    {
        std::unique_lock lock(state_);
        error = std::exchange(error_, nullptr);
        const bool failed = is_abandoned || error;
        if (failed) {
            queue_.clear();
            queued_bytes_ = 0;
        }
        if (n_in_place_busy_ > 0) begin_stall();
        changed_.wait(lock, [&] { return n_in_place_busy_ == 0; });
        end_stall();
        compute_ = nullptr;
        if (failed) forget_transfers();
        arrived_.clear();
        n_unclaimed_ = 0;
        timeline_ = nullptr;
    }
    // What got a slot and did not come: computed in place, or lost to the failure.
    for (size_t i = 0; i < missing_.size(); ++i) {
        const Missing& missing = missing_[i];
        const int32_t expert = wants_[static_cast<size_t>(missing.want)].expert;
        if (missing.slot && !missing.has_landed && cache_->residency().n_resident(layer_, expert) > missing.granule)
            cache_->discard(layer_, expert, missing.granule);
    }
    cache_->release();
    tally_.n_link = static_cast<int64_t>(missing_.size()) - tally_.n_in_place - tally_.n_prefetched;
    if (error) throw Error(*error);
    if (is_abandoned) return {};

    account();
    return {tally_.stall_s,
            static_cast<int>(tally_.n_resident),
            static_cast<int>(tally_.n_link),
            static_cast<int>(tally_.n_in_place),
            static_cast<int>(tally_.n_prefetched),
            guessed_ids_,
            found_};
}

void Streamer::account() {
    const auto guess = predictor_->guess(layer_);
    guessed_ids_.assign(guess.begin(), guess.end());
    if (is_decode_) {
        decode_[static_cast<size_t>(layer_)].add(tally_);
        score_guess();
    } else if (n_tokens_ > 0) {
        prefill_[static_cast<size_t>(layer_)].add(tally_);
    }
}

// Prefetching gains what arrived inside the window, in which the lane had nothing else to do, and costs what ran over it in vain.
void Streamer::score_guess() {
    const double rate = lane_->rate();
    predict::Outcome outcome{.useful_bytes = tally_.useful_bytes, .wasted_bytes = tally_.wasted_bytes, .late_bytes = tally_.late_bytes};
    if (rate > 0.0) {
        const double useful_s = static_cast<double>(tally_.useful_bytes) / rate, wasted_s = static_cast<double>(tally_.wasted_bytes) / rate;
        outcome.saved_s = std::min(useful_s, window_s_);
        outcome.lost_s = std::min(wasted_s, std::max(0.0, useful_s + wasted_s - window_s_));
    }
    predictor_->observe(layer_, ids_, outcome);
}

void Streamer::forget_transfers() {
    std::vector<transfer::Ticket> mine;
    for (const auto& [ticket, fetch] : fetches_) {
        if (fetch.first_missing >= 0) mine.push_back(ticket);
    }
    for (const transfer::Ticket ticket : mine) drop(ticket);
    n_moving_demand_ = 0;
    moving_bytes_ = 0;
    free_desks_.clear();  // no thread is at one any more
    for (int i = 0; i < static_cast<int>(desks_.size()); ++i) free_desks_.push_back(i);
}

// ---- warm start, figures ---------------------------------------------------------------------------------------------------------------

void Streamer::warm_up(int n_threads, const std::function<bool(uint64_t, uint64_t)>& progress) {
    if (options_.profile.empty()) return;
    cache_->warm(options_.profile);
    ThreadPool pool(n_threads);
    uint64_t done = 0;
    const uint64_t total = static_cast<uint64_t>(cache_->residency().resident_bytes());
    for (int il = 0; il < n_layer(); ++il) {
        if (progress && !progress(done, total)) fail(Code::cancelled, "load: cancelled while filling the expert cache");
        done += load_residents(il, pool);
    }
    if (progress) progress(total, total);
}

uint64_t Streamer::load_residents(int layer, ThreadPool& pool) {
    std::vector<Want> wants;
    layer_ = layer;
    n_tokens_ = 0;
    is_decode_ = false;
    missing_.clear();
    ready_.clear();
    tally_ = {};
    {
        const std::lock_guard lock(state_);
        for (int32_t e = 0; e < layers_[static_cast<size_t>(layer)].n_expert; ++e) {
            const int n = cache_->residency().n_resident(layer, e);
            if (n == 0) continue;
            for (int g = 0; g < n;) {
                const GranuleRun unit = store_->unit(layer, g);
                const int count = std::min(n, static_cast<int>(unit.first + unit.count)) - g;
                queue_.push_back({static_cast<int>(missing_.size()), count, count * granule_bytes(layer)});
                queued_bytes_ += count * granule_bytes(layer);
                for (int j = g; j < g + count; ++j)
                    missing_.push_back({static_cast<int32_t>(wants.size()), j, arena_.slot(cache_->residency().find(layer, e, j).slot)});
                g += count;
            }
            wants.push_back({e, nullptr});
        }
        wants_ = wants;
        n_unclaimed_ = static_cast<int>(missing_.size());
        while (!queue_.empty()) {
            const Queued next = queue_.front();
            queue_.pop_front();
            const Missing& first = missing_[static_cast<size_t>(next.first_missing)];
            submit(layer, wants[static_cast<size_t>(first.want)].expert, {first.granule, next.count}, false, next.first_missing);
        }
        queued_bytes_ = 0;
    }
    pool.run(pool.size(), [&](int64_t, int thread) {
        while (const Item item = take_missing(thread)) {
            n_busy_.fetch_sub(1, std::memory_order_acq_rel);
        }
    });
    uint64_t bytes = 0;
    for (const Missing& missing : missing_) bytes += missing.has_landed ? static_cast<uint64_t>(granule_bytes(layer)) : 0;
    end_pass(false);
    return bytes;
}

Streamer::Stats Streamer::stats() {
    const std::lock_guard owner(owner_);
    Stats stats;
    stats.decode = decode_;
    stats.prefill = prefill_;
    for (int il = 0; il < n_layer(); ++il) stats.scores.push_back(predictor_->score(il));
    stats.lane = lane_->stats();
    stats.lane_text = lane_->describe();
    stats.policy = cache::name(cache_->policy().kind);
    stats.note = cache_->pools().note;
    stats.lane_bytes_s = lane_->rate();
    const cache::Residency& residency = cache_->residency();
    stats.cache_bytes = residency.capacity_bytes();
    stats.resident_bytes = residency.resident_bytes();
    stats.loads = residency.loads();
    stats.evictions = residency.evictions();
    stats.staging_bytes = needs_.staging_bytes;
    stats.desk_bytes = needs_.desk_bytes;
    stats.n_policy_changes = n_policy_changes_;
    const std::lock_guard state(state_);
    stats.cpu_bytes_s = cpu_rate_;
    return stats;
}

void Streamer::reset_stats() {
    const std::lock_guard owner(owner_);
    decode_.assign(layers_.size(), {});
    prefill_.assign(layers_.size(), {});
    lane_->reset_stats();
}

std::vector<double> Streamer::uses() {
    const std::lock_guard owner(owner_);
    return uses_;
}

void Streamer::check() {
    const std::lock_guard owner(owner_);
    cache_->residency().check();
}

}  // namespace moepic
