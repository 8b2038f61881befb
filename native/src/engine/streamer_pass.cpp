// A layer's way through the streamer, seen by its owner: what begins before compute threads start, and what ends after they are done.
#include <algorithm>

#include "base/error.h"
#include "engine/streamer.h"

namespace moepic {

void Streamer::begin_tokens(int64_t n) {
    const std::lock_guard lock(owner_);
    books_.begin_tokens(n, lane_->rate());
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
    const int n_granules = static_cast<int>(store_->layout(layer).n_granules);
    layer_ = layer;
    n_tokens_ = n_tokens;
    is_decode_ = batch.is_decode;
    uses_cpu_lane_ = books_.uses_cpu_lane();
    wants_ = wants;
    ids_.assign(ids.begin(), ids.end());
    ready_.clear();
    missing_.clear();
    tally_ = {};
    first_wave_done_ = false;
    next_ready_.store(0, std::memory_order_relaxed);
    n_busy_.store(0, std::memory_order_relaxed);
    const auto routed = books_.route(layer, ids, is_decode_, n_tokens >= kManyTokens);
    n_resident_.assign(wants.size(), 0);
    want_of_.assign(static_cast<size_t>(layers_[static_cast<size_t>(layer)].n_expert), -1);
    found_.assign(want_of_.size(), 0);
    for (size_t w = 0; w < wants.size(); ++w) want_of_[static_cast<size_t>(wants[w].expert)] = static_cast<int32_t>(w);

    // Hot experts first: the link takes them from the head of the queue, a CPU lane the cold ones from its tail.
    order_.assign(routed.begin(), routed.end());
    if (uses_cpu_lane_) {
        std::stable_sort(order_.begin(), order_.end(), [&](const cache::Routed& a, const cache::Routed& b) {
            return books_.cache().worth(layer, a.expert) > books_.cache().worth(layer, b.expert);
        });
    } else if (n_tokens >= kManyTokens) {  // groups are computed in ascending order
        std::sort(order_.begin(), order_.end(), [](const cache::Routed& a, const cache::Routed& b) { return a.expert < b.expert; });
    }

    const cache::Residency& residency = books_.cache().residency();
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
    if (s_.books_.foretell(layer, ids)) s_.prefetch(layer, s_.books_.guess(layer));
}

std::span<const int32_t> Streamer::Pass::guess(int layer) const {
    return s_.books_.guess(layer);
}

void Streamer::prefetch(int layer, std::span<const int32_t> ids) {
    const int n_granules = static_cast<int>(store_->layout(layer).n_granules);
    const int most = needs_.n_frames - std::max(1, needs_.n_frames / 4);
    const std::lock_guard lock(state_);
    prefetched_at_ns_[static_cast<size_t>(layer)] = now_ns();
    for (const int32_t expert : ids) {
        for (int64_t g = books_.cache().residency().n_resident(layer, expert); g < n_granules;) {
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
        if (missing.slot && !missing.has_landed && books_.cache().residency().n_resident(layer_, expert) > missing.granule)
            books_.cache().discard(layer_, expert, missing.granule);
    }
    books_.cache().release();
    tally_.n_link = static_cast<int64_t>(missing_.size()) - tally_.n_in_place - tally_.n_prefetched;
    if (error) throw Error(*error);
    if (is_abandoned) return {};

    std::span<const int32_t> guess;
    if (n_tokens_ > 0) {  // not while the cache is warmed up
        guess = books_.account({.layer = layer_,
                                .ids = ids_,
                                .is_decode = is_decode_,
                                .missing_bytes = static_cast<int64_t>(missing_.size()) * granule_bytes(layer_),
                                .window_s = window_s_,
                                .miss_bytes_s = lane_->rate()},
                               tally_);
    }
    return {tally_.stall_s,
            static_cast<int>(tally_.n_resident),
            static_cast<int>(tally_.n_link),
            static_cast<int>(tally_.n_in_place),
            static_cast<int>(tally_.n_prefetched),
            guess,
            found_};
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

}  // namespace moepic
