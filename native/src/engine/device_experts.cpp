#include "engine/device_experts.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "engine/timeline.h"

namespace moepic {
namespace {

// Frames that a queue passes through, unless asked otherwise; a sixth as many are for fetching ahead. Enough for a token of the models
// known to us in one half, so that decode rarely waits for a frame.
constexpr uint64_t kFrameBytes = uint64_t{384} << 20;
constexpr uint64_t kLeastHalf = 2;
constexpr int kChunkEvents = 8;
// Granules fetched ahead that are under way at once: what demand may have to wait behind.
constexpr size_t kFetchesAtOnce = 2;
constexpr size_t kBounceFrames = 4;  // two for the link, two for the CPU
constexpr uint64_t kMeasuredBytes = uint64_t{32} << 20;

std::vector<StoredLayer> stored_of(const std::vector<StreamLayer>& layers) {
    std::vector<StoredLayer> stored;
    for (const StreamLayer& layer : layers) stored.push_back(layer.stored);
    return stored;
}

}  // namespace

DeviceFrames DeviceExperts::measure(const std::vector<StreamLayer>& layers, const StreamOptions& options) {
    DeviceFrames needs;
    int most_used = 0;
    uint64_t most = 0;  // granules of a layer
    for (const StreamLayer& layer : layers) {
        most = std::max(most, static_cast<uint64_t>(layer.n_expert) * static_cast<uint64_t>(layer.stored.layout.n_granules));
        needs.frame_bytes = std::max<uint64_t>(needs.frame_bytes, layer.stored.layout.granule_bytes);
        most_used = std::max(most_used, layer.n_used * static_cast<int>(layer.stored.layout.n_granules));
    }
    const uint64_t bytes = options.staging_bytes ? options.staging_bytes : kFrameBytes;
    const uint64_t half = std::min(bytes * 3 / 7 / needs.frame_bytes, most);
    needs.n_queue = 2 * static_cast<int>(std::max<uint64_t>(half, kLeastHalf));
    needs.n_ahead = std::clamp(needs.n_queue / 6, 1, most_used);
    needs.table_bytes = DeviceResident::device_bytes(layers);
    return needs;
}

DeviceExperts::DeviceExperts(const device::Library& library, std::string device_name, const PinnedStrips& pinned,
                             std::vector<StreamLayer> layers, int64_t cache_bytes, const StreamOptions& options, double most_cpu_bytes_s,
                             Graphs graphs)
    : library_(library),
      device_name_(std::move(device_name)),
      pinned_(pinned),
      options_(options),
      layers_(std::move(layers)),
      store_(make_memory_store(stored_of(layers_))),
      needs_(measure(layers_, options)),
      books_(layers_, cache_bytes, options.cache, options, has_cpu_lane()),
      resident_(library, layers_),
      demand_(library, -1),
      ahead_(library, 0),
      last_use_(library),
      residents_done_(library),
      last_arrival_(library),
      graphs_(graphs),
      cpu_cost_(options.cpu_bytes_s, most_cpu_bytes_s) {
    std::vector<ArenaPool> pools;
    for (const cache::Pool& pool : books_.cache().pools().pools) pools.push_back({static_cast<size_t>(pool.slot_bytes), pool.n_slot});
    arena_.emplace(library, std::move(pools));
    frames_ = device::allocate(library, needs_.frames_bytes(), "frames for experts");
    bounce_ = device::allocate_host(library, kBounceFrames * needs_.frame_bytes, "frames for experts that are not pinned");
    for (size_t i = 0; i < kBounceFrames; ++i) bounced_.emplace_back(library);
    for (int i = 0; i < 2; ++i) half_done_.emplace_back(library);
    for (int i = 0; i < kChunkEvents; ++i) chunk_.emplace_back(library);
    for (int i = 0; i < needs_.n_ahead; ++i) {
        ahead_done_.emplace_back(library);
        free_ahead_.push_back(i);
    }
    prefetched_at_ns_.assign(layers_.size(), 0);
    measure_link();
}

DeviceExperts::~DeviceExperts() {
    // Copies under way end before their memory goes; a device that fails here has failed before, and said so.
    (void)library_->synchronize(demand_.get());
    (void)library_->synchronize(ahead_.get());
}

// The link's rate until passes measure it: chunks like those of a queue, into frames that nobody reads yet.
void DeviceExperts::measure_link() {
    const uint64_t bytes = std::min(kMeasuredBytes, frames_.size());
    for (int round = 0; round < 2; ++round) {  // the first wakes the link up
        const int64_t start = now_ns();
        for (uint64_t at = 0; at < bytes; at += kChunkBytes) {
            demand_.copy(frames_.data() + at, bounce_.data(), std::min<uint64_t>(kChunkBytes, std::min(bytes - at, bounce_.size())));
        }
        demand_.synchronize();
        link_rate_ = static_cast<double>(bytes) / (1e-9 * static_cast<double>(std::max<int64_t>(1, now_ns() - start)));
    }
}

void DeviceExperts::copy(std::byte* to, int layer, int32_t expert, int granule, const device::OwnedStream& stream) {
    copy(to, store_->in_place(layer, expert, granule), store_->layout(layer).granule_bytes, stream);
}

void DeviceExperts::copy(std::byte* to, const std::byte* from, size_t bytes, const device::OwnedStream& stream) {
    if (pinned_.holds(from, bytes)) {
        stream.copy(to, from, bytes);
    } else {
        const size_t at = next_bounce_++ % kBounceFrames;
        std::byte* frame = bounce_.data() + at * needs_.frame_bytes;
        bounced_[at].wait_host();
        std::memcpy(frame, from, bytes);
        stream.copy(to, frame, bytes);
        stream.record(bounced_[at]);
    }
    moved_bytes_ += bytes;
    ++n_transfers_;
}

void DeviceExperts::warm_up(const std::function<bool(uint64_t, uint64_t)>& progress) {
    const std::lock_guard owner(owner_);
    std::vector<double> profile = options_.profile;
    // Without a profile the cache learns as it goes, unless there is nothing to choose.
    if (profile.empty() && !books_.holds_all()) return;
    if (profile.empty()) profile.assign(books_.uses().size(), 1.0);
    books_.cache().warm(profile);
    const cache::Residency& residency = books_.cache().residency();
    const auto total = static_cast<uint64_t>(residency.resident_bytes());
    uint64_t done = 0;
    for (int layer = 0; layer < n_layer(); ++layer) {
        if (progress && !progress(done, total)) fail(Code::cancelled, "load: cancelled while filling the expert cache");
        for (int32_t expert = 0; expert < layers_[static_cast<size_t>(layer)].n_expert; ++expert) {
            for (int g = 0; g < residency.n_resident(layer, expert); ++g) {
                copy(slot(layer, expert, g), layer, expert, g, demand_);
                done += static_cast<uint64_t>(granule_bytes(layer));
            }
        }
        demand_.synchronize();
    }
    if (progress) progress(total, total);
}

// ---- giving memory back ----------------------------------------------------------------------------------------------------------------

uint64_t DeviceExperts::arena_bytes() {
    const std::lock_guard owner(owner_);
    return arena_->bytes();
}

uint64_t DeviceExperts::give_back(uint64_t bytes) {
    const std::lock_guard owner(owner_);
    const size_t n_pieces = arena_->pieces_with(bytes);
    if (n_pieces == 0) return 0;
    // Slots are read by kernels of passes, which last_use_ ends, and written there and by demand_.
    demand_.synchronize();
    last_use_.wait_host();
    account_letters();  // the policy hears what was used before it says what leaves
    const auto moves = books_.shrink(arena_->slots_without(n_pieces));
    const auto given = arena_->take_last(n_pieces);
    move(moves);
    uint64_t freed = 0;
    for (const device::DeviceMemory& piece : given) freed += piece.size();
    given_back_bytes_ += freed;
    return freed;
}

// Granules worth keeping leave pieces that are given back.
void DeviceExperts::move(std::span<const cache::Residency::Move> moves) {
    try {
        for (const auto [from, to] : moves) {
            const auto bytes = static_cast<size_t>(granule_bytes(books_.cache().residency().slot(to).layer));
            demand_.copy(arena_->slot(to), arena_->slot(from), bytes);
        }
        demand_.synchronize();
    } catch (...) {  // nobody knows what arrived
        (void)library_->synchronize(demand_.get());
        for (const auto [from, to] : moves) {
            const cache::Slot moved = books_.cache().residency().slot(to);
            if (moved.layer >= 0) books_.cache().discard(moved.layer, moved.expert, moved.granule);
        }
        throw;
    }
}

void DeviceExperts::begin_tokens(int64_t n) {
    const std::lock_guard owner(owner_);
    account_letters();
    double rate;
    {
        const std::lock_guard state(state_);
        rate = link_rate_;
    }
    books_.begin_tokens(n, rate);
}

// ---- the beginning of a pass -----------------------------------------------------------------------------------------------------------

DeviceExperts::Pass::Pass(DeviceExperts& experts, const Batch& batch) : e_(experts), owner_(experts.owner_) {
    e_.begin_pass(batch);
}

DeviceExperts::Pass::~Pass() {
    if (!is_finished_) e_.end_pass(true);
}

void DeviceExperts::begin_pass(const Batch& batch) {
    const int layer = batch.layer, n_granules = static_cast<int>(store_->layout(layer).n_granules);
    const int64_t start_ns = now_ns();
    layer_ = layer;
    n_tokens_ = batch.n_tokens;
    n_granules_ = n_granules;
    is_decode_ = batch.is_decode;
    is_many_ = batch.n_tokens > kFewTokens;
    // A trial compares tokens of decode, and its verdict is about them: of a prompt, whose layers are long, the measured cost decides
    // alone.
    uses_cpu_lane_ = batch.cpu.is_ready && (is_many_ || books_.uses_cpu_lane());
    cpu_threads_ = batch.cpu.n_threads;
    compute_ = batch.compute;
    experts_ = batch.experts;
    entries_ = batch.entries;
    ids_.assign(batch.ids.begin(), batch.ids.end());
    tally_ = {};
    placed_.clear();
    missing_.clear();
    n_chunks_ = 0;
    take_stall();
    for (const int f : retired_ahead_) free_ahead_.push_back(f);
    retired_ahead_.clear();
    demand_.wait(last_use_);
    ahead_.wait(last_use_);
    compute_->wait(last_use_);

    const auto routed = books_.route(layer, ids_, is_decode_, n_tokens_ >= kManyTokens);
    want_of_.assign(static_cast<size_t>(layers_[static_cast<size_t>(layer)].n_expert), -1);
    found_.assign(want_of_.size(), 0);
    for (size_t w = 0; w < experts_.size(); ++w) want_of_[static_cast<size_t>(experts_[w])] = static_cast<int32_t>(w);
    order_.assign(routed.begin(), routed.end());
    int n_in_place = 0;  // experts of a prompt that the CPU may take
    if (is_many_) {
        n_in_place = order_prompt(batch);
        uses_cpu_lane_ = n_in_place > 0;
    } else if (uses_cpu_lane_) {  // hot experts first: the link takes them from the head, the CPU the cold ones from the tail
        std::stable_sort(order_.begin(), order_.end(), [&](const cache::Routed& a, const cache::Routed& b) {
            return books_.cache().worth(layer, a.expert) > books_.cache().worth(layer, b.expert);
        });
    }

    for (const cache::Routed& r : order_) {
        const int32_t want = want_of_[static_cast<size_t>(r.expert)];
        found_[static_cast<size_t>(r.expert)] = r.n_resident;
        for (int g = 0; g < r.n_resident; ++g) placed_.push_back({want, g, slot(layer, r.expert, g)});
        ++(r.n_resident == n_granules ? tally_.n_hit : r.n_resident > 0 ? tally_.n_partial : tally_.n_miss);
    }
    n_resident_ = static_cast<int>(placed_.size());
    tally_.n_resident = n_resident_;

    // How long the link had for what was guessed: since it was asked, or since demand last kept it busy.
    const int64_t idle_from = std::max(prefetched_at_ns_[static_cast<size_t>(layer)], last_arrival_ns_);
    window_s_ = 1e-9 * static_cast<double>(std::max<int64_t>(0, start_ns - idle_from));
    adopted_.clear();
    std::vector<Placed> queue;
    int n_frames = 0;
    double queued_cpu_s = 0.0;
    for (const cache::Routed& r : order_) {
        const int32_t want = want_of_[static_cast<size_t>(r.expert)];
        const double cpu_s = uses_cpu_lane_ ? cpu_cost_.seconds(granule_bytes(layer), entries_[static_cast<size_t>(want)]) : 0.0;
        bool in_order = true;  // granules of a prompt's expert are added up in the order they stand here
        for (int g = r.n_resident; g < n_granules; ++g) {
            std::byte* kept = g < r.n_resident + r.n_kept ? slot(layer, r.expert, g) : nullptr;
            if ((in_order || !is_many_) && adopt(r.expert, g, kept, want)) continue;
            in_order = false;
            Missing& missing = missing_.emplace_back(Missing{.expert = r.expert, .cpu_s = cpu_s});
            queued_cpu_s += cpu_s;
            if (!kept) missing.frame = n_frames++;
            missing.to = kept ? kept : frame(missing.frame % needs_.n_queue);
            queue.push_back({want, g, missing.to});
        }
    }
    drop_guesses(layer);
    for (const Adopted& a : adopted_) placed_.push_back({a.want, a.granule, frame(needs_.n_queue + a.frame)});
    first_missing_ = static_cast<int>(placed_.size());
    placed_.insert(placed_.end(), queue.begin(), queue.end());
    first_in_place_ = is_many_ ? static_cast<int>(missing_.size()) - n_in_place * n_granules : 0;

    const std::lock_guard lock(state_);
    moving_.clear();  // whatever it was, the kernels of its pass waited for it
    moving_bytes_ = 0;
    head_ = 0;
    tail_ = in_place_ = in_place_end_ = static_cast<int>(missing_.size());
    queued_bytes_ = tail_ * granule_bytes(layer);
    queued_cpu_s_ = queued_cpu_s;
}

// Orders the experts of a prompt; returns how many at the end are such that the CPU may take them. The others ascend, so that what lies
// side by side in host memory is one copy.
int DeviceExperts::order_prompt(const Batch& batch) {
    std::sort(order_.begin(), order_.end(), [](const cache::Routed& a, const cache::Routed& b) { return a.expert < b.expert; });
    if (!uses_cpu_lane_) return 0;
    const auto n_entries = [&](const cache::Routed& r) { return entries_[static_cast<size_t>(want_of_[static_cast<size_t>(r.expert)])]; };
    const auto passing = std::stable_partition(
        order_.begin(), order_.end(), [&](const cache::Routed& r) { return r.n_resident + r.n_kept > 0 || is_fetched(r.expert, 0); });
    // A copy costs its bytes, and a product its tokens: few tokens are the CPU's.
    std::stable_sort(passing, order_.end(), [&](const cache::Routed& a, const cache::Routed& b) { return n_entries(a) > n_entries(b); });
    auto first = order_.end();
    for (int64_t room = batch.cpu.most_entries; first != passing; --first) {
        room -= n_entries(*std::prev(first));
        if (room < 0) break;
    }
    return static_cast<int>(order_.end() - first);
}

// Whether the granule was fetched ahead, or is being.
bool DeviceExperts::is_fetched(int32_t expert, int granule) const {
    const auto it = guesses_.find({layer_, expert, granule});
    return it != guesses_.end() && it->second.frame >= 0;
}

// Takes over a granule that was fetched ahead, or is being; one that still waits for its turn is demand now.
bool DeviceExperts::adopt(int32_t expert, int granule, std::byte* slot, int32_t want) {
    const auto it = guesses_.find({layer_, expert, granule});
    if (it == guesses_.end()) return false;
    const int at = it->second.frame;
    guesses_.erase(it);
    if (at < 0) return false;
    const int64_t bytes = granule_bytes(layer_);
    tally_.useful_bytes += bytes;
    if (!ahead_done_[static_cast<size_t>(at)].is_done()) tally_.late_bytes += bytes;
    ++tally_.n_prefetched;
    adopted_.push_back({want, granule, at, slot});
    retired_ahead_.push_back(at);
    return true;
}

// What was guessed for the layer and not adopted was wrong.
void DeviceExperts::drop_guesses(int layer) {
    for (auto it = guesses_.lower_bound({layer, 0, 0}); it != guesses_.end() && it->first.layer == layer; it = guesses_.erase(it)) {
        if (it->second.frame < 0) continue;  // one that still waited for its turn cost nothing
        const int64_t bytes = granule_bytes(layer);
        tally_.wasted_bytes += bytes;
        dropped_bytes_ += static_cast<uint64_t>(bytes);
        ++n_dropped_;
        free_ahead_.push_back(it->second.frame);  // the next copy into it comes behind on the same stream
    }
    std::erase_if(to_fetch_, [&](const Key& key) { return key.layer == layer; });
}

// The time between the end of the residents' kernels and the last arrival, of the pass before: both are over by now.
void DeviceExperts::take_stall() {
    if (!stall_) return;
    double seconds = 0.0;
    residents_done_.wait_host();
    last_arrival_.wait_host();
    library_.check(library_->elapsed(residents_done_.get(), last_arrival_.get(), &seconds), "timing a layer's transfers");
    books_.add_stall(stall_->layer, stall_->is_decode, std::max(0.0, seconds));
    stall_.reset();
}

DeviceExperts::Range DeviceExperts::Pass::await_ahead() {
    for (const Adopted& a : e_.adopted_) {
        e_.compute_->wait(e_.ahead_done_[static_cast<size_t>(a.frame)]);
        // To stay it moves inside the device, which takes a hundredth of the link's time.
        if (!a.slot) continue;
        const auto bytes = static_cast<size_t>(e_.granule_bytes(e_.layer_));
        e_.compute_->copy(a.slot, e_.frame(e_.needs_.n_queue + a.frame), bytes);
    }
    return {e_.n_resident_, static_cast<int>(e_.adopted_.size())};
}

void DeviceExperts::Pass::residents_launched() {
    e_.compute_->record(e_.residents_done_);
}

// ---- fetching ahead --------------------------------------------------------------------------------------------------------------------

bool DeviceExperts::wants_guess(int layer) {
    const std::lock_guard owner(owner_);
    return books_.wants_guess(layer, false);
}

bool DeviceExperts::may_share(int layer) {
    if (!has_cpu_lane()) return false;
    const std::lock_guard owner(owner_);
    const cache::Residency& residency = books_.cache().residency();
    const int n_granules = static_cast<int>(store_->layout(layer).n_granules);
    for (int32_t expert = 0; expert < layers_[static_cast<size_t>(layer)].n_expert; ++expert) {
        if (residency.n_resident(layer, expert) < n_granules) return true;
    }
    return false;
}

void DeviceExperts::Pass::prefetch(int layer, std::span<const int32_t> ids) {
    if (e_.books_.foretell(layer, ids)) e_.fetch_ahead(layer, e_.books_.guess(layer));
}

// Hot experts first, who will have most tokens: the cold ones are the CPU's, and need not come. It moves while the host waits for the
// device, when neither the queue's link nor the CPU has work.
void DeviceExperts::Pass::prefetch_all(int layer) {
    std::vector<cache::Rank> worth;
    std::vector<int32_t> ids;
    for (int32_t expert = 0; expert < e_.layers_[static_cast<size_t>(layer)].n_expert; ++expert) {
        worth.push_back(e_.books_.cache().worth(layer, expert));
        ids.push_back(expert);
    }
    std::stable_sort(ids.begin(), ids.end(),
                     [&](int32_t a, int32_t b) { return worth[static_cast<size_t>(a)] > worth[static_cast<size_t>(b)]; });
    e_.fetch_ahead(layer, ids);
}

void DeviceExperts::fetch_ahead(int layer, std::span<const int32_t> ids) {
    const int n_granules = static_cast<int>(store_->layout(layer).n_granules);
    prefetched_at_ns_[static_cast<size_t>(layer)] = now_ns();
    for (const int32_t expert : ids) {
        for (int g = books_.cache().residency().n_resident(layer, expert); g < n_granules; ++g) {
            if (static_cast<int>(to_fetch_.size()) >= needs_.n_ahead) return;
            const Key key{layer, expert, g};
            if (guesses_.try_emplace(key).second) to_fetch_.push_back(key);
        }
    }
}

void DeviceExperts::pump() {
    const std::unique_lock owner(owner_, std::try_to_lock);
    if (!owner || to_fetch_.empty()) return;
    while (!fetching_.empty() && ahead_done_[static_cast<size_t>(fetching_.front())].is_done()) fetching_.pop_front();
    while (!to_fetch_.empty() && fetching_.size() < kFetchesAtOnce && !free_ahead_.empty()) {
        const Key key = to_fetch_.front();
        to_fetch_.pop_front();
        const auto guess = guesses_.find(key);
        const int at = free_ahead_.back();
        free_ahead_.pop_back();
        copy(frame(needs_.n_queue + at), key.layer, key.expert, key.granule, ahead_);
        ahead_.record(ahead_done_[static_cast<size_t>(at)]);
        guess->second.frame = at;
        fetching_.push_back(at);
    }
}

// ---- the end of a pass -----------------------------------------------------------------------------------------------------------------

PassReport DeviceExperts::Pass::finish() {
    PassReport report = e_.end_pass(false);
    is_finished_ = true;
    return report;
}

PassReport DeviceExperts::end_pass(bool is_abandoned) {
    // What got a slot and did not come was computed in place, or lost to a failure.
    for (size_t i = 0; i < missing_.size(); ++i) {
        const Missing& missing = missing_[i];
        const int granule = placed_[static_cast<size_t>(first_missing_) + i].granule;
        if (missing.frame < 0 && !missing.is_loaded && books_.cache().residency().n_resident(layer_, missing.expert) > granule)
            books_.cache().discard(layer_, missing.expert, granule);
    }
    if (is_abandoned) {
        for (const Adopted& a : adopted_) {
            const int32_t expert = experts_[static_cast<size_t>(a.want)];
            if (a.slot && books_.cache().residency().n_resident(layer_, expert) > a.granule)
                books_.cache().discard(layer_, expert, a.granule);
        }
    }
    books_.cache().release();
    if (is_abandoned) {
        // Nobody launched what would have waited for these copies.
        (void)library_->synchronize(demand_.get());
        (void)library_->synchronize(compute_->get());
        return {};
    }
    if (n_chunks_ > 0 && !stall_) {
        demand_.record(last_arrival_);
        stall_ = Stall{layer_, is_decode_};
    }
    compute_->record(last_use_);
    double rate;
    {
        const std::lock_guard lock(state_);
        rate = link_rate_;
    }
    const auto guessed = books_.account({.layer = layer_,
                                         .ids = ids_,
                                         .is_decode = is_decode_,
                                         .missing_bytes = static_cast<int64_t>(missing_.size()) * granule_bytes(layer_),
                                         .window_s = window_s_,
                                         .miss_bytes_s = rate},
                                        tally_);
    return {0.0,
            static_cast<int>(tally_.n_resident),
            static_cast<int>(tally_.n_link),
            static_cast<int>(tally_.n_in_place),
            static_cast<int>(tally_.n_prefetched),
            guessed,
            found_};
}

// ---- figures ---------------------------------------------------------------------------------------------------------------------------

StreamStats DeviceExperts::stats() {
    const std::lock_guard owner(owner_);
    take_stall();
    await_letters();
    StreamStats stats;
    stats.round_trips = round_trips_;
    stats.graphs = {wants_graph(), graph_trial_.cost(), graph_trial_.n_switched_off()};
    stats.n_graph_tokens = n_graph_tokens_;
    stats.n_graphs = n_graphs_;
    books_.write(stats);
    stats.staging_bytes = frames_.size();
    stats.given_back_bytes = given_back_bytes_;
    stats.pinned_bytes = pinned_.pinned_bytes();
    stats.to_pin_bytes = pinned_.left_bytes();
    stats.lane.bytes = moved_bytes_ - dropped_bytes_;
    stats.lane.raw_bytes = moved_bytes_;
    stats.lane.dropped_bytes = dropped_bytes_;
    stats.lane.n_transfers = n_transfers_;
    stats.lane.n_cancelled = n_dropped_;
    const std::lock_guard state(state_);
    stats.lane_text = cat("link to ", device_name_, has_cpu_lane() ? ", shared with the CPU" : "");
    stats.lane_bytes_s = link_rate_;
    stats.cpu_bytes_s = has_cpu_lane() ? cpu_cost_.bytes_s(1) : 0.0;
    return stats;
}

void DeviceExperts::reset_stats() {
    const std::lock_guard owner(owner_);
    take_stall();
    await_letters();
    books_.reset();
    moved_bytes_ = dropped_bytes_ = 0;
    n_transfers_ = n_dropped_ = 0;
    round_trips_ = {};
    n_graph_tokens_ = n_graphs_ = 0;
}

void DeviceExperts::note_round_trip(double waited_s, double planned_s) {
    const std::lock_guard owner(owner_);
    ++round_trips_.n_layers;
    round_trips_.waited_s += waited_s;
    round_trips_.planned_s += planned_s;
}

std::vector<double> DeviceExperts::uses() {
    const std::lock_guard owner(owner_);
    await_letters();
    return books_.uses();
}

void DeviceExperts::check() {
    const std::lock_guard owner(owner_);
    books_.cache().residency().check();
}

}  // namespace moepic
