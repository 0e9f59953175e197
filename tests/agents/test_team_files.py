"""Teams as TOML: what is read, what is written, and what is said about what cannot be read."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st
from traces import members

from shoal.agents import (
    Agent,
    Channel,
    Protocol,
    Script,
    Team,
    dump_team,
    load_team,
    packaged_teams,
    parse_team,
)
from shoal.agents.rules import Call
from shoal.core.budget import Limits
from shoal.core.errors import ConfigError, InputError
from shoal.core.protocols import Sampling

PAIR = """
shoal = 1
name = "pair"
about = "Two."
task = "Do it."
preamble = "Read."
channels = "mesh(view=last(2))"

[protocol]
turn = "all(but=editor)"
reduce = "judge(editor)"
until = ["rounds(2)", "consensus(0.8)"]
on_failure = "retry(2, then=abort)"

[limits]
tokens = 5000
seconds = 60

[[member]]
name = "reader"
role = '''
Say what it
is about.
'''
objective = "Be right."
model = "small"
reads = "part"
max_tokens = 64
temperature = 0.7
stop = ["END"]
limits = { calls = 3 }

[[member]]
name = "editor"
copies = 1
"""


def test_every_field_is_read() -> None:
    assert parse_team(PAIR) == Team(
        "pair",
        (
            Agent(
                "reader",
                "Say what it\nis about.",
                "Be right.",
                "small",
                "part",
                sampling=Sampling(max_tokens=64, temperature=0.7, stop=("END",)),
                limits=Limits(calls=3),
            ),
            Agent("editor"),
        ),
        Protocol(
            "all(but=editor)",
            "judge(editor)",
            Call("any", (Call("rounds", (2,)), Call("consensus", (0.8,)))),
            "retry(2, then=abort)",
        ),
        "mesh(view=last(2))",
        preamble="Read.",
        task="Do it.",
        about="Two.",
        limits=Limits(tokens=5000, seconds=60),
    )


def test_channels_may_be_tables() -> None:
    team = parse_team(
        """
        name = "t"
        [[member]]
        name = "a"
        [[member]]
        name = "b"
        [[channel]]
        from = "a"
        to = ["a", "b"]
        view = "all"
        [[channel]]
        from = "*"
        to = "b"
        """
    )
    assert team.channels == (Channel("a", ("a", "b"), "all"), Channel("*", "b"))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "role = ",
            "roel = ",
            r"The team, line 21: there is no field 'roel' \(at member\[1\]\.roel\)\. "
            r"Did you mean 'role'\? Known: name, role",
        ),
        ("turn =", "trun =", r"line 10: there is no field 'trun'.*Did you mean 'turn'"),
        (
            "channels =",
            "chanels =",
            r"line 7: there is no field 'chanels'.*Did you mean 'channels'",
        ),
        ("tokens = 5000", "token = 5000", r"line 16: there is no field 'token'.*'tokens'"),
        ("{ calls = 3 }", "{ call = 3 }", r"line 31: there is no field 'call'.*'calls'"),
        ("max_tokens = 64", 'max_tokens = "many"', r"line 28: member\[1\]\.max_tokens is wrong"),
        ("max_tokens = 64", "max_tokens = -3", r"line 28: member\[1\]\.max_tokens is wrong"),
        ("temperature = 0.7", "temperature = -1.0", "Member 'reader': temperature is -1"),
        ("temperature = 0.7", "temperature = nan", "temperature is wrong"),
        ('reads = "part"', 'reads = "some"', "'all', 'part' or 'none'"),
        ("shoal = 1", "shoal = 2", r"format 2, newer than.*\(1\): upgrade shoal"),
        ("shoal = 1", "shoal 1", r"is not TOML: .*line 2"),
        ("rounds(2)", "runds(2)", r"no stop rule 'runds'\. Did you mean 'rounds'"),
        ('"consensus(0.8)"', '"consensus(0.8"', r"The rule 'consensus\(0.8' has its end where"),
        ("judge(editor)", "judge(edtor)", "Did you mean 'editor'"),
        ('name = "editor"', 'name = "reader"', "two members named 'reader'"),
        ('name = "editor"', "", r"member\[2\]\.name is wrong: Field required"),
        ("copies = 1", "copies = 0", r"member\[2\]\.copies is wrong"),
        ("[protocol]", "[[protocol]]", "protocol is wrong"),
        ("[limits]", '[[channel]]\nfrom = "a"\nto = "b"\n[limits]', "keep one of them"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_its_fix(
    old: str, new: str, sentence: str
) -> None:
    assert old in PAIR
    with pytest.raises(ConfigError, match=sentence) as caught:
        parse_team(PAIR.replace(old, new))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("The team")


def test_a_cycle_without_a_finite_stop_is_refused() -> None:
    text = PAIR.replace('["rounds(2)", "consensus(0.8)"]', '"consensus"')
    text = text.replace("tokens = 5000\nseconds = 60", "")
    with pytest.raises(ConfigError, match="The team: Team 'pair' may never stop"):
        parse_team(text)


tables = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)
fields = st.sampled_from(
    ["shoal", "name", "channels", "channel", "protocol", "member", "limits", "task", "team"]
)


def without_none(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    return [without_none(v) for v in value if v is not None] if isinstance(value, list) else value


@given(st.dictionaries(fields, tables, max_size=5))
def test_any_toml_is_a_team_or_a_config_error(table: dict[str, object]) -> None:
    text = tomli_w.dumps(without_none(table))  # type: ignore[arg-type]
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_team(text), Team)


@given(
    st.integers(0, len(PAIR)),
    st.integers(0, 8),
    st.text(max_size=6) | st.sampled_from(["[", '"', "[[member]]\n", "= ", "#"]),
)
@example(0, 1, "0")
@example(PAIR.index("role"), 4, '"a\\nb"')
@settings(max_examples=300)
def test_a_damaged_file_is_a_team_or_a_config_error(at: int, cut: int, new: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_team(PAIR[:at] + new + PAIR[at + cut :])


@given(st.text(max_size=60))
def test_any_text_is_a_team_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):  # without a member there is no team
        parse_team(text)


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nests too deep|not TOML"):
        parse_team("member = " + "[" * 5000 + "]" * 5000)


names = st.sampled_from(["ann", "bob", "cid", "dee"])
samplings = st.builds(
    Sampling,
    max_tokens=st.integers(0, 999),
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=2).map(tuple),
)
limits = st.builds(
    Limits,
    st.none() | st.integers(1, 99),
    st.none() | st.integers(1, 9),
    st.none() | st.floats(1, 9),
)
words = st.text("ab c'\"\\\n#é", max_size=12).map(str.strip)
agents = st.builds(
    Agent,
    names,
    words,
    words,
    st.sampled_from(["default", "small"]),
    st.sampled_from(["all", "part", "none"]),
    sampling=samplings,
    limits=limits,
)


def make_teams(inner: st.SearchStrategy[object]) -> st.SearchStrategy[Team]:
    return st.builds(
        Team,
        st.sampled_from(["one", "two"]),
        st.lists(inner, min_size=1, max_size=3, unique_by=lambda m: m.name).map(tuple),  # type: ignore[attr-defined]
        st.builds(
            Protocol,
            st.sampled_from(["all", "round_robin", "chain"]),
            st.sampled_from(["last", "vote(majority)"]),
            st.sampled_from(["rounds(2)", Call("turns", (3,))]),
            st.sampled_from(["retry", "abort"]),
        ),
        st.sampled_from(["mesh", "none", "chain(view=last(2))", ()])
        | st.just((Channel("*", "*", "all"),)),
        words,
        words,
        words,
        words,
        limits,
    )


@given(make_teams(agents | make_teams(agents)))
def test_a_written_team_is_read_back(team: Team) -> None:
    text = dump_team(team)
    again = parse_team(text)
    assert dump_team(again) == text
    assert again.members == tuple(
        parse_team(dump_team(m)) if isinstance(m, Team) else m for m in team.members
    )
    assert (again.task, again.preamble, again.limits) == (team.task, team.preamble, team.limits)
    assert tomllib.loads(text)["shoal"] == 1


def test_functions_cannot_be_written() -> None:
    script = Team("t", (Agent("a", model=Script(lambda messages, seed: "x")),))
    with pytest.raises(ConfigError, match="'a' is a function, which no file can hold"):
        dump_team(script)
    rule = Team("t", members("a"), Protocol(until="rounds(1)", turn=lambda state: None))  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match="rule that is a function cannot be written"):
        dump_team(rule)


def test_packaged_teams_are_complete() -> None:
    teams = {team.name: team for team in packaged_teams()}
    assert set(teams) == {"debate", "map-reduce", "pipeline", "reading-room", "supervisor"}
    for team in teams.values():
        assert team.about.endswith(".")
        assert team.task
        assert team.preamble
        assert parse_team(dump_team(team)) == team
    room = teams["reading-room"]
    assert room.names == ("reader", "fact-checker", "critic", "editor")
    assert all(isinstance(m, Agent) and m.reads == "all" for m in room.members)


def test_names_and_paths_find_teams(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(PAIR)
    expected = parse_team(PAIR)
    assert load_team(str(tmp_path / "mine.toml")) == expected
    assert load_team(tmp_path / "mine.toml") == expected
    assert load_team("mine.toml", folder=tmp_path) == expected
    assert load_team("debate").name == "debate"


def test_unknown_teams_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no team 'reading-rom'\. Did you mean 'reading-room'"):
        load_team("reading-rom")
    with pytest.raises(InputError, match=r"Cannot read the team file .*gone\.toml: No such file"):
        load_team(tmp_path / "gone.toml")
    with pytest.raises(InputError, match="Cannot read the team file"):
        load_team(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        load_team(tmp_path / "binary.toml")
    (tmp_path / "bad.toml").write_text(PAIR.replace("role =", "roel ="))
    with pytest.raises(ConfigError, match=r"bad\.toml, line 21: there is no field 'roel'"):
        load_team(tmp_path / "bad.toml")


def test_a_member_may_be_a_team_by_name_by_path_or_in_place(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "inner.toml").write_text('[[member]]\nname = "x"\n')
    (tmp_path / "outer.toml").write_text(
        """
        name = "outer"
        [[member]]
        name = "panel"
        team = "debate"
        objective = "Agree."
        [[member]]
        name = "file"
        team = "deep/inner.toml"
        limits = { calls = 2 }
        [[member]]
        name = "here"
        [member.team]
        [[member.team.member]]
        name = "y"
        """
    )
    panel, file, here = load_team(tmp_path / "outer.toml").members
    assert isinstance(panel, Team)
    assert isinstance(file, Team)
    assert isinstance(here, Team)
    assert (panel.name, panel.objective, panel.names) == ("panel", "Agree.", ("debater",))
    assert (file.names, file.limits) == (("x",), Limits(calls=2))
    assert here.names == ("y",)


def test_a_team_that_contains_itself_or_does_what_a_member_does_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[[member]]\nname = "m"\nteam = "b.toml"\n')
    (tmp_path / "b.toml").write_text('[[member]]\nname = "m"\nteam = "a.toml"\n')
    with pytest.raises(ConfigError, match=r"a\.toml contains itself"):
        load_team(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match="'m' is a team, so it cannot have 'role'"):
        parse_team('[[member]]\nname = "m"\nrole = "r"\nteam = { member = [] }')
    with pytest.raises(ConfigError, match="'m' names a team, which cannot be looked up"):
        parse_team('[[member]]\nname = "m"\nteam = "debate"')
