"""The ledger of transfers against a model of it in plain lists: any order of calls by users and movers."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from moepic_gguf._ffi import ffi

from .lanes import DEMAND, PREFETCH, Delivery, open_manual

STEP = 100  # bytes


@dataclass
class Transfer:
    """One transfer as lane.h describes it."""

    ticket: int
    urgency: int
    order: int
    n_steps: int
    state: str = "queued"  # moving, dropped (cancelled under way), ready, failed, gone
    n_claimed: int = 0
    n_under_way: int = 0
    moved: int = 0
    has_failed: bool = False

    @property
    def holds_frame(self) -> bool:
        return self.state in ("moving", "dropped", "ready")


@dataclass
class Model:
    n_frames: int
    n_prefetch_frames: int
    n_prefetch_steps: int
    transfers: dict[int, Transfer] = field(default_factory=dict)
    order: int = 0

    def count(self, wanted: Any) -> int:
        return sum(wanted(t) for t in self.transfers.values())

    def may_start(self, t: Transfer) -> bool:
        n_held = self.count(lambda t: t.holds_frame)
        n_prefetch = self.count(lambda t: t.holds_frame and t.urgency == PREFETCH)
        return n_held < self.n_frames and (t.urgency == DEMAND or n_prefetch < self.n_prefetch_frames)

    def next(self) -> Transfer | None:
        """Whose step goes now: by urgency, then order, of those that move or may start to."""
        n_under_way = sum(t.n_under_way for t in self.transfers.values() if t.urgency == PREFETCH)
        for t in sorted(self.transfers.values(), key=lambda t: (t.urgency, t.order)):
            if t.urgency == PREFETCH and n_under_way == self.n_prefetch_steps:
                return None
            if t.state == "queued" and self.may_start(t):
                return t
            if t.state == "moving" and t.n_claimed < t.n_steps and not t.has_failed:
                return t
        return None


class Ledger(RuleBasedStateMachine):
    tickets = Bundle("tickets")
    claims = Bundle("claims")

    @initialize(n_frames=st.integers(2, 6), depth=st.integers(1, 6))
    def open(self, n_frames: int, depth: int) -> None:
        self.lane = open_manual(n_frames=n_frames, depth=depth)
        self.model = Model(n_frames, n_frames - max(1, n_frames // 4), max(1, depth // 2))
        self.expected: list[tuple[int, bool]] = []  # deliveries: ticket, failed
        self.stats = dict.fromkeys(("bytes", "raw_bytes", "dropped_bytes", "n_transfers", "n_cancelled", "n_failed"), 0)

    def teardown(self) -> None:
        if hasattr(self, "lane"):
            self.lane.close()

    @rule(target=tickets, n_steps=st.integers(1, 4), urgency=st.sampled_from([DEMAND, PREFETCH]))
    def submit(self, n_steps: int, urgency: int) -> int:
        ticket = self.lane.submit([(0, i * STEP, STEP) for i in range(n_steps)], urgency)
        assert ticket not in self.model.transfers
        self.model.order += 1
        self.model.transfers[ticket] = Transfer(ticket, urgency, self.model.order, n_steps)
        return ticket

    @rule(ticket=tickets)
    def promote(self, ticket: int) -> None:
        self.lane.promote(ticket)
        t = self.model.transfers[ticket]
        if t.state in ("queued", "moving") and t.urgency == PREFETCH:
            self.model.order += 1
            t.urgency, t.order = DEMAND, self.model.order

    @rule(ticket=tickets)
    def cancel(self, ticket: int) -> None:
        t = self.model.transfers[ticket]
        assert self.lane.cancel(ticket) == (t.state in ("queued", "moving"))
        if t.state in ("queued", "moving"):
            self.stats["n_cancelled"] += 1
            t.state = "dropped" if t.state == "moving" else "gone"
            self.land_dropped(t)

    def land_dropped(self, t: Transfer) -> None:
        if t.state == "dropped" and t.n_under_way == 0:
            self.stats["dropped_bytes"] += t.moved
            t.state = "gone"

    @rule(ticket=tickets)
    def release(self, ticket: int) -> None:
        self.lane.release(ticket)
        t = self.model.transfers[ticket]
        if t.state in ("ready", "failed"):
            t.state = "gone"

    @rule(target=claims)
    def claim(self) -> Any:
        found, t = self.lane.claim(), self.model.next()
        if t is None:
            assert found is None
            return multiple()
        assert found is not None
        claim, ticket, first, offset = found
        assert (ticket, first, offset) == (t.ticket, t.n_claimed == 0, t.n_claimed * STEP)
        t.state = "moving"
        t.n_claimed += 1
        t.n_under_way += 1
        return claim, ticket

    @rule(claim=consumes(claims), fails=st.sampled_from([False, False, False, True]))
    def finish(self, claim: tuple[int, int], fails: bool) -> None:
        number, ticket = claim
        moved = STEP // 2 if fails else STEP
        self.lane.finish(number, moved, fails=fails)
        t = self.model.transfers[ticket]
        t.n_under_way -= 1
        t.moved += moved
        t.has_failed |= fails
        self.stats["raw_bytes"] += moved
        self.land_dropped(t)
        if t.state == "moving" and t.n_under_way == 0 and (t.n_claimed == t.n_steps or t.has_failed):
            t.state = "failed" if t.has_failed else "ready"
            self.stats["n_failed" if t.has_failed else "n_transfers"] += 1
            self.stats["bytes"] += 0 if t.has_failed else t.n_steps * STEP
            self.expected.append((ticket, t.has_failed))

    @invariant()
    def deliveries_and_statistics_are_those_of_the_model(self) -> None:
        if not hasattr(self, "lane"):
            return
        for ticket, failed in self.expected:
            found = self.lane.next(0.0)
            assert isinstance(found, Delivery)
            assert (found.ticket, found.error) == (ticket, "made to fail" if failed else None)
            assert len(found.pieces) == (0 if failed else self.model.transfers[ticket].n_steps)
        self.expected.clear()
        assert self.lane.next(0.0) is None
        stats = self.lane.stats
        assert {name: getattr(stats, name) for name in self.stats} == self.stats
        is_busy = any(t.state in ("moving", "dropped") for t in self.model.transfers.values())
        busy_s = self.lane.stats.busy_s
        assert busy_s >= stats.busy_s
        if not is_busy:
            assert busy_s == stats.busy_s, "busy time stands still while nothing moves"


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_demand_step_goes_before_the_remaining_steps_of_a_prefetch_under_way() -> None:
    with open_manual() as lane:
        ahead = lane.submit([(0, i * STEP, STEP) for i in range(3)], PREFETCH)
        assert lane.claim() == (0, ahead, True, 0)
        wanted = lane.submit([(0, 0, STEP)])
        assert lane.claim() == (1, wanted, True, 0)
        assert lane.claim() == (2, ahead, False, STEP)


def test_frames_in_use_never_overlap() -> None:
    with open_manual(frame_bytes=3 * STEP, max_pieces=3, n_frames=3) as lane:
        for _ in range(3):
            lane.submit([(0, i * STEP, STEP) for i in range(3)])
        while found := lane.claim():
            lane.finish(found[0], STEP)
        places = sorted(int(ffi.cast("uintptr_t", piece)) for _ in range(3) for piece in lane.take().pieces)
        assert len(places) == 9
        assert all(b - a >= STEP for a, b in pairwise(places))
