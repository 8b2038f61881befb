"""The page of families and checks says what the tests do."""

from __future__ import annotations

from tests.families.table import CHECKS, PAGE, collected, page


def test_the_page_of_families_is_current():
    assert PAGE.read_text() == page(), "run python -m tests.families.table"


def test_every_column_is_filled_by_a_test_that_exists():
    """A renamed test must not empty its column in silence."""
    found = collected()
    assert {column for column, test in CHECKS.items() if not found[test]} == set()
