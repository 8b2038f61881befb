#include "engine/streamer.h"

#include <algorithm>

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

cache::CacheOptions cache_options_of(const ExpertStore& store, const StreamOptions& options) {
    cache::CacheOptions cache = options.cache;
    if (options.choose_eviction && reads_whole_experts(store)) cache.eviction = cache::Eviction::whole;
    return cache;
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

StreamNeeds Streamer::measure(const std::vector<StreamLayer>& layers, const StreamOptions& options, int n_threads, bool smallest) {
    return needs_of(*make_store(layers, options.link_bytes_s > 0.0), options, n_threads, smallest);
}

Streamer::Streamer(const ops::Kernels& kernels, std::vector<StreamLayer> layers, std::vector<std::string> paths, int64_t cache_bytes,
                   int n_threads, bool smallest, const StreamOptions& options)
    : options_(options),
      layers_(std::move(layers)),
      store_(make_store(layers_, options.link_bytes_s > 0.0)),
      needs_(needs_of(*store_, options, n_threads, smallest)),
      books_(layers_, cache_bytes, cache_options_of(*store_, options), options, has_cpu_lane()) {
    std::vector<ArenaPool> pools;
    for (const cache::Pool& pool : books_.cache().pools().pools) pools.push_back({static_cast<size_t>(pool.slot_bytes), pool.n_slot});
    arena_ = Arena(pools);
    size_t granule = 0;
    for (const StreamLayer& layer : layers_) granule = std::max(granule, layer.stored.layout.granule_bytes);
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
    while (!queue_.empty()) {  // only then a pass is on, and its fields may be read
        const Queued next = queue_.front();
        if (uses_cpu_lane_ && n_tokens_ <= kFewTokens) {
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

// ---- warm start, figures ---------------------------------------------------------------------------------------------------------------

void Streamer::warm_up(int n_threads, const std::function<bool(uint64_t, uint64_t)>& progress) {
    if (options_.profile.empty()) return;
    books_.cache().warm(options_.profile);
    ThreadPool pool(n_threads);
    uint64_t done = 0;
    const uint64_t total = static_cast<uint64_t>(books_.cache().residency().resident_bytes());
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
    is_decode_ = uses_cpu_lane_ = false;
    missing_.clear();
    ready_.clear();
    tally_ = {};
    {
        const std::lock_guard lock(state_);
        for (int32_t e = 0; e < layers_[static_cast<size_t>(layer)].n_expert; ++e) {
            const int n = books_.cache().residency().n_resident(layer, e);
            if (n == 0) continue;
            for (int g = 0; g < n;) {
                const GranuleRun unit = store_->unit(layer, g);
                const int count = std::min(n, static_cast<int>(unit.first + unit.count)) - g;
                queue_.push_back({static_cast<int>(missing_.size()), count, count * granule_bytes(layer)});
                queued_bytes_ += count * granule_bytes(layer);
                for (int j = g; j < g + count; ++j)
                    missing_.push_back(
                        {static_cast<int32_t>(wants.size()), j, arena_.slot(books_.cache().residency().find(layer, e, j).slot)});
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
    books_.write(stats);
    stats.lane = lane_->stats();
    stats.lane_text = lane_->describe();
    stats.lane_bytes_s = lane_->rate();
    stats.staging_bytes = needs_.staging_bytes;
    stats.desk_bytes = needs_.desk_bytes;
    const std::lock_guard state(state_);
    stats.cpu_bytes_s = cpu_rate_;
    return stats;
}

void Streamer::reset_stats() {
    const std::lock_guard owner(owner_);
    books_.reset();
    lane_->reset_stats();
}

std::vector<double> Streamer::uses() {
    const std::lock_guard owner(owner_);
    return books_.uses();
}

void Streamer::check() {
    const std::lock_guard owner(owner_);
    books_.cache().residency().check();
}

}  // namespace moepic
