"""Sessions: what runs keep, what ends them, how tools are reached, which tier is taken."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import ConfigError, InputError
from shoal.core.records import ToolSpec
from shoal.sandbox import (
    TIERS,
    UNPROTECTED,
    Callback,
    NoSandbox,
    Policy,
    Sandbox,
    Session,
    SessionOver,
    Tier,
    tiers,
)
from shoal.sandbox.watch import load_of

WORKING = [name for name, tier in TIERS.items() if tier.missing() is None]
WITH_FILES = [name for name in WORKING if name != "monty"]


def opened(tier: str, **limits: float) -> Session:
    policy = Policy(tier=tier, unprotected=UNPROTECTED, **limits)  # type: ignore[arg-type]
    return Sandbox.open(policy)


@pytest.fixture(params=WORKING)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    session = opened(request.param, wall_seconds=5)
    yield session
    session.close()


@pytest.fixture(scope="module")
def best() -> Iterator[Session]:
    session = Sandbox.open()
    yield session
    session.close()


def test_a_session_keeps_what_runs_define(session: Session) -> None:
    first = session.run("x = 20\ndef twice(n):\n    return 2 * n\nprint('ready')\ntwice(x)")
    assert (first.status, first.value, first.output) == ("ok", 40, "ready\n")
    assert session.run("twice(x) + 1").value == 41
    assert first.isolation == session.isolation


def test_an_error_is_told_with_its_line_and_the_session_lives_on(session: Session) -> None:
    outcome = session.run("a = 1\nb = a / 0\n")
    assert outcome.status == "error"
    assert outcome.error.startswith("ZeroDivisionError")
    assert outcome.line == 2
    assert not outcome.ended
    assert session.run("a").value == 1


def test_code_that_does_not_parse_is_told(session: Session) -> None:
    outcome = session.run("def f(:\n    pass")
    assert outcome.status == "error"
    assert outcome.error.startswith("SyntaxError")


def test_time_ends_a_session_and_it_says_so() -> None:
    for tier in WORKING:
        session = opened(tier, wall_seconds=0.3)
        outcome = session.run("print('begun')\nwhile True:\n    pass")
        assert outcome.status == "timeout", tier
        assert outcome.seconds < 3
        with pytest.raises(SessionOver, match="open another"):
            session.run("1")


def test_tools_run_outside_and_only_as_permitted(session: Session) -> None:
    made: list[str] = []

    def find(what: str) -> dict[str, str]:
        made.append(what)
        return {"found": what}

    tools = [
        Callback(ToolSpec("store.find", "Finds."), find),
        Callback(ToolSpec("store.drop", "Drops.", side_effect="destroy"), lambda: made.append("!")),
    ]
    outcome = session.run("store_find(what='a')['found'] + 'b'", tools)
    assert (outcome.value, outcome.calls, outcome.refused) == ("ab", 1, 0)
    refused = session.run("store_drop()", tools)
    assert refused.status == "error"
    assert "destroy" in refused.error
    assert (refused.calls, refused.refused, made) == (0, 1, ["a"])
    allowed = session.run("store_drop()", tools, permit=lambda spec, arguments: None)
    assert allowed.status == "ok"
    assert made == ["a", "!"]


@pytest.mark.parametrize(
    ("forged", "status"),
    [
        ('{"kind": "raised"}', "error"),
        ('{"kind": "raised", "line": "x", "error": [1]}', "error"),
        ('{"kind": "done"}', "ok"),
        ('{"kind": ["done"]}', "protocol"),
        ('["done"]', "protocol"),
        ("1" * 5000, "protocol"),
        ("[" * 200_000, "protocol"),
        ('{"kind": "call", "name": ["a"], "arguments": 3}', "ok"),
    ],
)
def test_whatever_a_worker_says_the_host_goes_on(forged: str, status: str) -> None:
    session = Sandbox.open(Policy(wall_seconds=5))
    outcome = session.run(
        f"import os\nfor fd in range(3, 20):\n    try:\n        os.write(fd, {forged!r}.encode() + "
        "b'\\n')\n    except OSError:\n        pass"
    )
    assert outcome.status == status
    session.close()


def test_two_tools_cannot_have_one_name_in_a_sandbox(session: Session) -> None:
    tools = [Callback(ToolSpec(name, ""), lambda: 1) for name in ("a.b", "a_b")]
    with pytest.raises(ConfigError, match="both called 'a_b'"):
        session.run("1", tools)


def test_a_permission_sees_the_arguments(best: Session) -> None:
    tool = Callback(ToolSpec("read", "Reads."), lambda name: name)
    outcome = best.run(
        "read(name='public') + read(name='private')",
        [tool],
        permit=lambda spec, given: "not that" if given["name"] == "private" else None,
    )
    assert outcome.error == "PermissionError: not that"
    assert (outcome.calls, outcome.refused) == (1, 1)


def test_a_tool_that_fails_or_says_too_much_is_an_error_inside(best: Session) -> None:
    def fail() -> None:
        raise KeyError("gone")

    tools = [
        Callback(ToolSpec("fail", ""), fail),
        Callback(ToolSpec("much", ""), lambda: "x" * (2 << 20)),
        Callback(ToolSpec("odd", ""), lambda: object()),
    ]
    assert "KeyError: 'gone'" in best.run("fail()", tools).error
    assert "too many" in best.run("much()", tools).error
    assert "TypeError" in best.run("odd()", tools).error


@pytest.mark.parametrize("tier", WITH_FILES)
def test_files_go_in_and_out_by_plain_names(tier: str) -> None:
    session = opened(tier)
    session.put("data.csv", b"a,b\n1,2\n")
    assert session.run("open('data.csv').read().splitlines()").value == ["a,b", "1,2"]
    session.run("open('out.bin', 'wb').write(bytes(range(256)))")
    assert session.get("out.bin") == bytes(range(256))
    for name in ("../x", "/etc/passwd", "", "a/../../b"):
        with pytest.raises(InputError):
            session.get(name)
    with pytest.raises(InputError, match="FileNotFoundError"):
        session.get("missing")
    session.close()
    with pytest.raises(SessionOver):
        session.put("data.csv", b"")


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_any_json_comes_back_as_it_was(best: Session, value: object) -> None:
    text = json.dumps(value)
    assert best.run(f"import json\njson.loads({text!r})").value == json.loads(text)


@settings(max_examples=40)
@given(st.text(max_size=60))
def test_any_text_as_code_leaves_a_session_that_works(best: Session, code: str) -> None:
    best.run(f"try:\n    exec({code!r}, {{'__builtins__': {{}}}})\nexcept BaseException:\n    pass")
    assert best.run("6 * 7").value == 42


def test_sessions_do_not_see_each_other() -> None:
    one, other = Sandbox.open(), Sandbox.open()
    one.run("secret = 1\nopen('note', 'w').write('x') if 'open' in dir(__builtins__) else None")
    assert other.run("secret").status == "error"
    one.close()
    assert other.run("1 + 1").value == 2
    other.close()


def test_without_a_tier_nothing_runs_unless_told_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = {
        name: Tier(name, tier.kernel, tier.gaps, lambda: "taken away", tier.open)
        if name != "none"
        else tier
        for name, tier in TIERS.items()
    }
    monkeypatch.setattr(tiers, "TIERS", nothing)
    with pytest.raises(NoSandbox, match="run this code without isolation"):
        Sandbox.open()
    with pytest.raises(NoSandbox, match="taken away"):
        Sandbox.open(Policy(tier="bubblewrap"))
    with pytest.raises(ConfigError, match="unprotected is 'yes'"):
        Policy(unprotected="yes")
    session = Sandbox.open(Policy(unprotected=UNPROTECTED))
    assert session.run("1").isolation == "none"
    session.close()


def test_limits_must_make_sense() -> None:
    with pytest.raises(ConfigError, match="wall_seconds is 0"):
        Policy(wall_seconds=0)
    with pytest.raises(ConfigError, match="processes are -1"):
        Policy(processes=-1)
    with pytest.raises(ConfigError, match=r"There is no tier 'bubblewarp'.*bubblewrap"):
        Sandbox.open(Policy(tier="bubblewarp"))  # type: ignore[arg-type]


def test_every_tier_names_what_it_does_not_protect() -> None:
    assert list(TIERS) == ["bubblewrap", "sandlock", "monty", "none"]
    assert all(tier.gaps for tier in TIERS.values())


def test_the_load_of_a_tree_counts_children() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 5 & sleep 5"]) as shell:
        try:
            for _ in range(100):
                if load_of(shell.pid).tasks == 3:
                    break
                time.sleep(0.01)
            load = load_of(shell.pid)
            assert load.tasks == 3
            assert load.resident > 0
        finally:
            subprocess.run(["pkill", "-P", str(shell.pid)], check=False)
            shell.kill()
    assert load_of(shell.pid).tasks == 0
