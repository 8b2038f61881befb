"""Budgets, options and stop strings: no engine, no files."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moepic_gguf import ArgumentError, BudgetError, ContextOptions, DeviceError, LoadOptions, SamplingOptions
from moepic_gguf.budgets import parse_budget, show_bytes
from moepic_gguf.config import choose_device
from moepic_gguf.stopping import StopScanner


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        (None, None), (0, 0), (123, 123), ("123", 123), ("8GiB", 8 * 2**30), ("8g", 8 * 2**30), ("8 GB", 8 * 10**9), ("1.5MiB", 3 * 2**19),
        ("512 mib", 2**29), ("1TiB", 2**40), ("50%", 500), ("0%", 0), ("100 %", 1000), (".5k", 512),
    ],
)  # fmt: skip
def test_a_budget_means_these_bytes(text, n_bytes):
    assert parse_budget(text, name="ram", whole_bytes=1000) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", -1, "8 potatoes", "101%", "1e9", "8GiB!", True, 1.5, "nan"])
def test_a_bad_budget_is_named(text):
    with pytest.raises(BudgetError, match="ram"):
        parse_budget(text, name="ram", whole_bytes=1000)


def test_a_share_of_nothing_known_is_refused():
    with pytest.raises(BudgetError, match="share"):
        parse_budget("50%", name="vram")


@given(st.integers(0, 2**62))
def test_a_shown_size_reads_back_within_its_digits(n_bytes):
    back = parse_budget(show_bytes(n_bytes), name="x")
    # Three digits are shown: half of the last one is at most 0.5 / 100 of the value, and reading drops a part of a
    # byte; below 1 KiB bytes are exact.
    assert abs(back - n_bytes) <= (0.005 * n_bytes + 1 if n_bytes >= 1024 else 0)


@pytest.mark.parametrize(
    "options",
    [
        LoadOptions(device="gpu"), LoadOptions(device="cpu:1"), LoadOptions(graphs="often"), LoadOptions(n_threads=-1), LoadOptions(isa="sse9"), LoadOptions(granule=-1),
        LoadOptions(ram="lots"), LoadOptions(vram="120%"), ContextOptions(n_ctx=-1), ContextOptions(kv_type="f32"), ContextOptions(n_batch=1.5),
        SamplingOptions(temperature=-1), SamplingOptions(temperature=math.nan), SamplingOptions(top_p=1.5), SamplingOptions(top_k=-1),
        SamplingOptions(min_p="0.1"), SamplingOptions(seed=-3), SamplingOptions(repeat_penalty=0), SamplingOptions(logit_bias={-1: 0}),
        SamplingOptions(logit_bias={1: math.nan}), SamplingOptions(penalty_last_n=-2), SamplingOptions(typical_p=2),
    ],
    ids=lambda options: type(options).__name__,
)  # fmt: skip
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises((ArgumentError, BudgetError)):
        options.validate()


def test_options_print_themselves():
    assert "n_ctx" in str(ContextOptions())
    assert "temperature" in str(SamplingOptions())
    assert "ram" in str(LoadOptions())


@pytest.mark.parametrize(
    "options",
    [LoadOptions(device="cuda"), LoadOptions(device="cuda:0"), LoadOptions(vram="8GiB"), LoadOptions(vram="50%")],
)
def test_what_needs_a_missing_device_is_an_error_not_a_fallback(options):
    options.validate()
    with pytest.raises(DeviceError, match="device"):
        choose_device(options)


def test_auto_takes_the_cpu_and_says_why():
    choice = choose_device(LoadOptions(device="auto", vram=0))
    assert choice.device == "cpu"
    assert "cuda" in choice.reason


# ---- stop strings ----------------------------------------------------------------------------------------------------


def reference_cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the first stop string to be complete ends the text; of several, the one that began first."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


_ALPHABET = "ab\u00e9"


@given(
    st.lists(st.text(_ALPHABET, max_size=4), max_size=12),
    st.lists(st.text(_ALPHABET, min_size=1, max_size=5), max_size=4),
)
def test_stop_strings_cut_as_if_text_came_one_character_at_a_time(pieces, stops):
    scanner = StopScanner(stops)
    out, shown = "", ""
    for piece in pieces:
        out += scanner.push(piece)
        shown += piece
        if scanner.found is not None:
            break
        # What was shown is final, and nothing is held back without need.
        held = shown[len(out) :]
        assert shown.startswith(out)
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
    if scanner.found is None:
        out += scanner.flush()
    assert (out, scanner.found) == reference_cut("".join(pieces), stops)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ArgumentError):
        StopScanner(["a", ""])
