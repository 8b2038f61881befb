#include "capi/testing/transfer.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>

#include "base/error.h"
#include "capi/guard.h"
#include "transfer/file_lane.h"
#include "transfer/ledger.h"
#include "transfer/link_lane.h"

using namespace moepic;
using transfer::Delivery;
using transfer::Lane;
using transfer::Ticket;
using transfer::Urgency;
using Clock = std::chrono::steady_clock;

namespace {

struct Arrived {
    Delivery delivery;
    Clock::time_point at;
};

class ManualLane final : public transfer::LedgerLane {
public:
    ManualLane(uint64_t frame_bytes, int max_pieces, int n_frames, int depth, OnReady on_ready)
        : LedgerLane("manual lane", 1, max_pieces, n_frames, frame_bytes, depth, std::move(on_ready)) {}
    ~ManualLane() override { ledger_.stop(); }
    std::string describe() const override { return "manual"; }

    // Number of the claim, or -1.
    int32_t claim() {
        const auto claimed = ledger_.try_claim();
        if (!claimed) return -1;
        claims.push_back(*claimed);
        return static_cast<int32_t>(claims.size() - 1);
    }
    void finish(size_t claim, uint64_t moved_bytes, bool fails) {
        ledger_.finish(claims[claim], moved_bytes, fails ? std::make_shared<const Error>(Code::io, "made to fail") : nullptr);
    }
    std::vector<transfer::Claim> claims;  // since the start

protected:
    transfer::Cut cut(std::span<const transfer::Piece> pieces) const override {
        transfer::Cut cut;
        for (const transfer::Piece& piece : pieces) {
            cut.places.push_back(cut.frame_bytes);
            cut.steps.push_back({0, piece.offset, piece.bytes, 0, piece.bytes, cut.frame_bytes});
            cut.frame_bytes += piece.bytes;
        }
        return cut;
    }
};

}  // namespace

struct moepic_test_lane {
    std::mutex mutex;
    std::condition_variable came;
    std::deque<Arrived> arrived;  // guarded by mutex; addresses are stable while only the back grows
    size_t n_taken = 0;           // guarded by mutex
    const Clock::time_point opened = Clock::now();
    ManualLane* manual = nullptr;  // lane, if it is one
    std::unique_ptr<Lane> lane;    // last: its threads use what is above

    Lane::OnReady keep() {
        return [this](const Delivery& delivery) {
            std::lock_guard lock(mutex);
            arrived.push_back({delivery, Clock::now()});
            came.notify_all();
        };
    }
};

int32_t moepic_test_lane_open_files(moepic_test_lane** made, const char* const* paths, int32_t n_paths, uint64_t frame_bytes,
                                    int32_t max_pieces, int32_t n_frames, const moepic_test_file_io* io) {
    return guard([&] {
        auto handle = std::make_unique<moepic_test_lane>();
        transfer::FileLaneOptions options;
        options.paths.assign(paths, paths + n_paths);
        options.frame_bytes = frame_bytes;
        options.max_pieces = max_pieces;
        options.n_frames = n_frames;
        options.io = static_cast<transfer::FileIo>(io->io);
        options.n_threads = io->n_threads;
        options.direct = io->direct != 0;
        options.strict = io->strict != 0;
        handle->lane = transfer::open_file_lane(options, handle->keep());
        *made = handle.release();
    });
}

int32_t moepic_test_lane_open_link(moepic_test_lane** made, const uint8_t* const* sources, const uint64_t* source_bytes, int32_t n_sources,
                                   uint64_t frame_bytes, int32_t max_pieces, int32_t n_frames, double bytes_s, double latency_s) {
    return guard([&] {
        auto handle = std::make_unique<moepic_test_lane>();
        transfer::LinkLaneOptions options;
        for (int32_t i = 0; i < n_sources; ++i) {
            options.sources.emplace_back(reinterpret_cast<const std::byte*>(sources[i]), source_bytes[i]);
        }
        options.frame_bytes = frame_bytes;
        options.max_pieces = max_pieces;
        options.n_frames = n_frames;
        options.bytes_s = bytes_s;
        options.latency_s = latency_s;
        handle->lane = transfer::open_link_lane(options, handle->keep());
        *made = handle.release();
    });
}

int32_t moepic_test_lane_open_manual(moepic_test_lane** made, uint64_t frame_bytes, int32_t max_pieces, int32_t n_frames, int32_t depth) {
    return guard([&] {
        auto handle = std::make_unique<moepic_test_lane>();
        auto manual = std::make_unique<ManualLane>(frame_bytes, max_pieces, n_frames, depth, handle->keep());
        handle->manual = manual.get();
        handle->lane = std::move(manual);
        *made = handle.release();
    });
}

void moepic_test_lane_claim(int32_t* claim, uint64_t* ticket, int32_t* first, uint64_t* offset, moepic_test_lane* lane) {
    *claim = lane->manual->claim();
    if (*claim < 0) return;
    const transfer::Claim& claimed = lane->manual->claims.back();
    *ticket = claimed.ticket;
    *first = claimed.first;
    *offset = claimed.step.offset;
}

void moepic_test_lane_finish(moepic_test_lane* lane, int32_t claim, uint64_t moved_bytes, int32_t fails) {
    lane->manual->finish(static_cast<size_t>(claim), moved_bytes, fails != 0);
}

void moepic_test_lane_free(moepic_test_lane* lane) {
    delete lane;
}

int32_t moepic_test_lane_submit(uint64_t* ticket, moepic_test_lane* lane, const moepic_test_piece* pieces, int32_t n_pieces,
                                int32_t urgency) {
    return guard([&] {
        std::vector<transfer::Piece> wanted;
        for (int32_t i = 0; i < n_pieces; ++i) wanted.push_back({pieces[i].source, pieces[i].offset, pieces[i].bytes});
        *ticket = lane->lane->submit(wanted, static_cast<Urgency>(urgency));
    });
}

void moepic_test_lane_promote(moepic_test_lane* lane, uint64_t ticket) {
    lane->lane->promote(ticket);
}

int32_t moepic_test_lane_cancel(moepic_test_lane* lane, uint64_t ticket) {
    return lane->lane->cancel(ticket) ? 1 : 0;
}

void moepic_test_lane_release(moepic_test_lane* lane, uint64_t ticket) {
    lane->lane->release(ticket);
}

void moepic_test_lane_next(moepic_test_delivery* out, moepic_test_lane* lane, double timeout_s) {
    *out = {};
    std::unique_lock lock(lane->mutex);
    lane->came.wait_for(lock, std::chrono::duration<double>(timeout_s), [&] { return lane->arrived.size() > lane->n_taken; });
    if (lane->arrived.size() == lane->n_taken) return;
    const Arrived& next = lane->arrived[lane->n_taken++];
    out->ticket = next.delivery.ticket;
    if (next.delivery.error) {
        out->code = static_cast<int32_t>(next.delivery.error->code());
        out->error = next.delivery.error->what();
    }
    out->n_pieces = static_cast<int32_t>(next.delivery.pieces.size());
    out->pieces = reinterpret_cast<const uint8_t* const*>(next.delivery.pieces.data());
    out->at_s = std::chrono::duration<double>(next.at - lane->opened).count();
}

void moepic_test_lane_get_stats(moepic_test_lane_stats* out, const moepic_test_lane* lane) {
    const transfer::LaneStats s = lane->lane->stats();
    *out = {s.bytes,  s.raw_bytes,        s.dropped_bytes,           s.n_transfers,         s.n_cancelled, s.n_failed,
            s.busy_s, lane->lane->rate(), lane->lane->frame_bytes(), lane->lane->n_frames()};
}

void moepic_test_lane_reset_stats(moepic_test_lane* lane) {
    lane->lane->reset_stats();
}

void moepic_test_lane_describe(char* out, int32_t n, const moepic_test_lane* lane) {
    std::snprintf(out, static_cast<size_t>(n), "%s", lane->lane->describe().c_str());
}

int32_t moepic_test_lane_stress(moepic_test_lane* handle, int32_t n_threads, int32_t n_transfers, uint64_t n_pages) {
    return guard([&] {
        Lane& lane = *handle->lane;
        constexpr uint64_t kPage = 4096;
        enum class Fate { open, cancelled };
        std::mutex mutex;  // guards what follows
        std::unordered_map<Ticket, uint64_t> page_of;
        std::unordered_map<Ticket, Fate> fate_of;
        std::string wrong;
        const auto complain = [&](const std::string& text) {
            std::lock_guard lock(mutex);
            if (wrong.empty()) wrong = text;
        };
        const auto play = [&](uint32_t seed) {
            std::mt19937 random(seed);
            for (int32_t i = 0; i < n_transfers; ++i) {
                const uint64_t page = random() % n_pages;
                const transfer::Piece piece{0, page * kPage, kPage};
                const Ticket ticket = lane.submit({&piece, 1}, random() % 2 ? Urgency::prefetch : Urgency::demand);
                {
                    std::lock_guard lock(mutex);
                    page_of[ticket] = page;
                }
                if (random() % 4 == 0) lane.promote(ticket);
                if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
                if (random() % 3 == 0 && lane.cancel(ticket)) {
                    std::lock_guard lock(mutex);
                    fate_of[ticket] = Fate::cancelled;
                }
            }
        };
        std::vector<std::thread> threads;
        for (int32_t i = 0; i < n_threads; ++i) threads.emplace_back(play, static_cast<uint32_t>(i + 1));

        // This thread takes and releases; whatever is neither cancelled nor here after all have played must still come.
        std::unordered_map<Ticket, int> n_deliveries;
        const auto take = [&](double timeout_s) {
            moepic_test_delivery next;
            moepic_test_lane_next(&next, handle, timeout_s);
            if (next.ticket == 0) return false;
            if (++n_deliveries[next.ticket] > 1) complain(cat("ticket ", next.ticket, " was delivered twice"));
            uint64_t page = 0;
            bool is_known = false;
            while (!is_known) {  // it may be here before submit() has returned
                std::lock_guard lock(mutex);
                const auto found = page_of.find(next.ticket);
                is_known = found != page_of.end();
                if (is_known) page = found->second;
            }
            if (next.code != 0) complain(cat("ticket ", next.ticket, " failed: ", next.error));
            for (uint64_t word = 0; next.code == 0 && word < kPage / 8; ++word) {
                uint64_t found = 0;
                std::memcpy(&found, next.pieces[0] + 8 * word, 8);
                if (found != page) {
                    complain(cat("page ", page, " holds ", found));
                    break;
                }
            }
            lane.release(next.ticket);
            return true;
        };
        std::thread waiter([&] {
            for (std::thread& thread : threads) thread.join();
        });
        const auto total = static_cast<size_t>(n_threads) * static_cast<size_t>(n_transfers);
        const auto n_settled = [&] {
            std::lock_guard lock(mutex);
            return n_deliveries.size() + fate_of.size();
        };
        for (int idle = 0; n_settled() < total && idle < 200;) idle = take(0.05) ? 0 : idle + 1;
        waiter.join();
        while (take(0.02)) {
        }
        for (const auto& [ticket, fate] : fate_of) {
            if (n_deliveries.contains(ticket)) complain(cat("ticket ", ticket, " was cancelled and delivered"));
        }
        if (n_settled() != total) complain(cat(total - n_settled(), " of ", total, " transfers neither came nor were cancelled"));
        if (!wrong.empty()) fail(Code::internal, "lane: ", wrong);
    });
}
