"""The claim of KVCOMM: what is calibrated on is never tested, and choices hold the right answer."""

from __future__ import annotations

import sys

import pytest

from shoal.core.claims import find_system, runner
from shoal.core.claims.items import Item


@pytest.fixture(scope="module")
def parts():
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("kvcomm"), checkout)
    return {name: sys.modules[f"passing.{name}"] for name in ("choosing", "prompts")}


CASES = [Item(f"item-{n}", f"What is {n} times 3?", str(3 * n)) for n in range(41)]


def test_no_question_is_calibrated_on_and_tested(parts):
    tested, known = parts["choosing"].split(CASES)
    assert {len(tested), len(known)} == {20, 21}
    assert sorted([*tested, *known], key=CASES.index) == CASES
    assert parts["choosing"].split(CASES[::-1]) == (tested, known)


def test_the_right_number_is_one_of_four_different_ones(parts):
    for item in CASES:
        options = parts["prompts"].options(item, 7)
        assert len(set(options)) == 4 and item.answer in options
        assert options == parts["prompts"].options(item, 7)
