/* Test-only: lanes. Deliveries are kept in the order in which on_ready was called, and handed out one by one. */
#pragma once
#include "moepic.h"

/* cdef: begin */
typedef struct {
    int32_t source;
    uint64_t offset, bytes;
} moepic_test_piece;

typedef struct {
    int32_t io; /* 0 automatic, 1 io_uring, 2 threads */
    int32_t n_threads, direct, strict;
} moepic_test_file_io;

typedef struct {
    uint64_t bytes, raw_bytes, dropped_bytes;
    int64_t n_transfers, n_cancelled, n_failed;
    double busy_s, rate;
    uint64_t frame_bytes;
    int32_t n_frames;
} moepic_test_lane_stats;

typedef struct {
    uint64_t ticket; /* 0: nothing came in time */
    int32_t code;    /* of its error; 0: none */
    int32_t n_pieces;
    const char* error; /* these two: valid until the lane is freed */
    const uint8_t* const* pieces;
    double at_s; /* when on_ready was called, from when the lane was opened */
} moepic_test_delivery;

typedef struct moepic_test_lane moepic_test_lane;
MOEPIC_API int32_t moepic_test_lane_open_files(moepic_test_lane** made, const char* const* paths, int32_t n_paths, uint64_t frame_bytes,
                                               int32_t max_pieces, int32_t n_frames, const moepic_test_file_io* io);
/* The sources outlive the lane. */
MOEPIC_API int32_t moepic_test_lane_open_link(moepic_test_lane** made, const uint8_t* const* sources, const uint64_t* source_bytes,
                                              int32_t n_sources, uint64_t frame_bytes, int32_t max_pieces, int32_t n_frames, double bytes_s,
                                              double latency_s);
/* A lane that moves nothing by itself: every piece is a step, and the test claims and finishes steps. */
MOEPIC_API int32_t moepic_test_lane_open_manual(moepic_test_lane** made, uint64_t frame_bytes, int32_t max_pieces, int32_t n_frames,
                                                int32_t depth);
/* Takes the step that goes first: *claim is a number for finish, or -1 when none may go now. */
MOEPIC_API void moepic_test_lane_claim(int32_t* claim, uint64_t* ticket, int32_t* first, uint64_t* offset, moepic_test_lane* lane);
MOEPIC_API void moepic_test_lane_finish(moepic_test_lane* lane, int32_t claim, uint64_t moved_bytes, int32_t fails);
MOEPIC_API void moepic_test_lane_free(moepic_test_lane* lane);
MOEPIC_API int32_t moepic_test_lane_submit(uint64_t* ticket, moepic_test_lane* lane, const moepic_test_piece* pieces, int32_t n_pieces,
                                           int32_t urgency);
MOEPIC_API void moepic_test_lane_promote(moepic_test_lane* lane, uint64_t ticket);
MOEPIC_API int32_t moepic_test_lane_cancel(moepic_test_lane* lane, uint64_t ticket); /* 1: will not be delivered */
MOEPIC_API void moepic_test_lane_release(moepic_test_lane* lane, uint64_t ticket);
/* Waits at most timeout_s for the next delivery. */
MOEPIC_API void moepic_test_lane_next(moepic_test_delivery* out, moepic_test_lane* lane, double timeout_s);
MOEPIC_API void moepic_test_lane_get_stats(moepic_test_lane_stats* out, const moepic_test_lane* lane);
MOEPIC_API void moepic_test_lane_reset_stats(moepic_test_lane* lane);
/* Writes at most n - 1 bytes and a NUL. */
MOEPIC_API void moepic_test_lane_describe(char* out, int32_t n, const moepic_test_lane* lane);
/* n_threads threads submit n_transfers single-page transfers of source 0 each, promote some, cancel some and release what comes. Checks
 * that every ticket is delivered once or cancelled, never both, and that a delivered page holds its number, as 8-byte words: E_INTERNAL
 * says what broke. */
MOEPIC_API int32_t moepic_test_lane_stress(moepic_test_lane* lane, int32_t n_threads, int32_t n_transfers, uint64_t n_pages);
/* cdef: end */
