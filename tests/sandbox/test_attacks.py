"""The hostile suite, in every tier that works here."""

from __future__ import annotations

import pytest

from shoal.sandbox import TIERS
from shoal.sandbox.attacks import Attack, judge, load

ATTACKS = load()

KNOWN_GAPS = {
    "bubblewrap": set(),
    "sandlock": {"fill the disk"},
    "monty": set(),
}


def test_there_are_at_least_forty_attacks_of_every_kind() -> None:
    assert len(ATTACKS) >= 40
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    kinds = {attack.kind for attack in ATTACKS}
    assert kinds == {
        "files", "environment", "network", "processes", "kernel", "output", "imports", "tools"
    }  # fmt: skip


def test_a_tier_that_the_kernel_enforces_works_here() -> None:
    assert any(tier.kernel and tier.missing() is None for tier in TIERS.values())


@pytest.mark.parametrize("tier", ["bubblewrap", "sandlock", "monty"])
def test_every_attack_is_contained_but_for_the_gaps_that_are_named(tier: str) -> None:
    if why := TIERS[tier].missing():
        pytest.skip(why)
    verdicts = list(judge(ATTACKS, tier))  # type: ignore[arg-type]
    escaped = {verdict.attack.name: verdict.how for verdict in verdicts if not verdict.contained}
    assert set(escaped) <= KNOWN_GAPS[tier], escaped


def test_the_judge_sees_what_gets_out_where_nothing_isolates() -> None:
    wanted = {
        "read a secret by its path": "told a secret",
        "overwrite a file of the host": "changed a file",
        "leave a file in a folder that all may write": "it left left",
        "connect to a server of the host": "reached a AF_INET server",
        "connect to an abstract socket": "reached a AF_UNIX server",
        "send a datagram to the host": "reached a udp server",
        "kill another process by its number": "ended another process",
        "a daemon that stays": "stayed",
    }
    chosen = [attack for attack in ATTACKS if attack.name in wanted]
    for verdict in judge(chosen, "none"):
        assert not verdict.contained
        assert wanted[verdict.attack.name] in verdict.how


def test_what_would_harm_the_machine_is_not_tried_without_isolation() -> None:
    (verdict,) = judge([Attack("kernel", "x", "raise SystemError", harmful=True)], "none")
    assert not verdict.tried
    assert not verdict.contained


def test_tools_are_guarded_by_the_host_even_without_isolation() -> None:
    chosen = [attack for attack in ATTACKS if attack.kind == "tools"]
    escaped = [v.attack.name for v in judge(chosen, "none") if not v.contained]
    assert escaped == []
