"""The thirty mechanisms of the table: each one file, each with its exact trace.

Who saw what, in what order, why it stopped, what it cost. The teams are those of examples/teams.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from traces import members, numbered, protocol, trace

from shoal.agents import Material, Question, Team, TeamResult, load_team, run
from shoal.core.log import EventLog
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine

TEAMS = Path(__file__).parents[2] / "examples" / "teams"


def python_rows() -> ModuleType:
    """The module with the rows that need functions."""
    name = "shoal_example_rows"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TEAMS / "python_rows.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def speaking(words: dict[str, list[str]]) -> ScriptedEngine:
    """Everybody says what stands in their list, one after the other."""
    left = {name: iter(said) for name, said in words.items()}

    def answer(messages: tuple[Message, ...], seed: int) -> str:
        name = messages[-1].content.rpartition("You are ")[2].split(".")[0]
        return next(left[name])

    return ScriptedEngine(answer)


Turns = list[tuple[int, str, str, str]]


@dataclass(frozen=True)
class Row:
    """What members say, and what must come of it: (superstep, member, heard, said) each turn."""

    number: int
    name: str
    said: dict[str, list[str]]
    turns: Turns
    result: str
    why: str = "1 round"
    requests: tuple[int, ...] = ()
    notes: list[dict[str, object]] = field(default_factory=list)
    parts: tuple[str, ...] = ()


ROWS = [
    Row(1, "single", {"guide": ["Paris"]}, [(0, "guide", "", "Paris")], "Paris", requests=(1,)),
    Row(
        2, "pipeline", {"planner": ["points"], "writer": ["text"], "tester": ["checked"]},
        [(0, "planner", "", "points"), (1, "writer", "points", "text"),
         (2, "tester", "text", "checked")],
        "checked", requests=(1, 1, 1),
    ),
    Row(
        3, "self-consistency",
        {"solver-1": ["Answer: 12"], "solver-2": ["Answer: 11"], "solver-3": ["So: answer is 12."]},
        [(0, "solver-1", "", "Answer: 12"), (0, "solver-2", "", "Answer: 11"),
         (0, "solver-3", "", "So: answer is 12.")],
        "Answer: 12", requests=(3,), notes=[{"votes": {"12": 2, "11": 1}}],
    ),
    Row(
        4, "ranked-voting",
        {"ann": ["Answer: park > cafe > library"], "bob": ["Answer: library > cafe > park"],
         "cem": ["Answer: cafe > library > park"]},
        [(0, "ann", "", "Answer: park > cafe > library"),
         (0, "bob", "", "Answer: library > cafe > park"),
         (0, "cem", "", "Answer: cafe > library > park")],
        "cafe", requests=(3,), notes=[{"votes": {"cafe": 4, "library": 3, "park": 2}}],
    ),
    Row(
        5, "debate", {"ann": ["yes", "yes"], "bob": ["no", "yes"], "cem": ["no", "no"]},
        [(0, "ann", "", "yes"), (0, "bob", "", "no"), (0, "cem", "", "no"),
         (1, "ann", "yes no no", "yes"), (1, "bob", "yes no no", "yes"),
         (1, "cem", "yes no no", "no")],
        "yes", "2 rounds", (3, 3),
        [{"payoff": {"ann": 1.0, "bob": 1.0, "cem": 1.0}}, {"votes": {"yes": 2, "no": 1}}],
    ),
    Row(
        6, "debate-judge",
        {"pro": ["for 6", "for 8"], "con": ["against 4", "against 2"], "judge": ["pro"]},
        [(0, "pro", "", "for 6"), (1, "con", "for 6", "against 4"),
         (2, "pro", "for 6 against 4", "for 8"), (3, "con", "for 6 against 4 for 8", "against 2"),
         (4, "judge", "for 8 against 2", "pro")],
        "pro", "2 rounds", (1, 1, 1, 1, 1),
        [{"payoff": {"pro": 8 - 10 / 3, "con": 2 - 10 / 3, "judge": -10 / 3}}],
    ),
    Row(
        7, "critic", {"writer": ["drops", "soft drops"], "critic": ["softer", "I approve"]},
        [(0, "writer", "", "drops"), (1, "critic", "drops", "softer"),
         (2, "writer", "softer", "soft drops"), (3, "critic", "soft drops", "I approve")],
        "soft drops", "critic said 'approve'", (1, 1, 1, 1),
    ),
    Row(
        8, "peer-review", {"ann": ["a1", "a2"], "bob": ["b1", "b2"], "cem": ["c1", "c2"]},
        [(0, "ann", "", "a1"), (0, "bob", "", "b1"), (0, "cem", "", "c1"),
         (1, "ann", "c1", "a2"), (1, "bob", "a1", "b2"), (1, "cem", "b1", "c2")],
        "ann: a2\n\nbob: b2\n\ncem: c2", "2 rounds", (3, 3),
    ),
    Row(
        9, "role-play", {"user": ["buy bread", "bring it"], "assistant": ["bought", "brought"]},
        [(0, "user", "", "buy bread"), (1, "assistant", "buy bread", "bought"),
         (2, "user", "bought", "bring it"), (3, "assistant", "bring it", "brought")],
        "brought", "4 turns", (1, 1, 1, 1),
    ),
    Row(
        10, "group-chat",
        {"host": ["poet", "child", "child"], "poet": ["Luna"], "child": ["nice", "Luna!"]},
        [(0, "host", "", "poet"), (1, "poet", "", "Luna"), (2, "host", "Luna", "child"),
         (3, "child", "Luna", "nice"), (4, "host", "Luna nice", "child"),
         (5, "child", "Luna nice", "Luna!")],
        "Luna!", "3 rounds", (1, 1, 1, 1, 1, 1),
    ),
    Row(
        11, "supervisor",
        {"hub": ["cook", "farmer", "cook", "finish", "All in all."], "cook": ["honey", "wax"],
         "farmer": ["fruit"]},
        [(0, "hub", "", "cook"), (1, "cook", "", "honey"), (2, "hub", "honey", "farmer"),
         (3, "farmer", "", "fruit"), (4, "hub", "honey fruit", "cook"), (5, "cook", "", "wax"),
         (6, "hub", "fruit wax", "finish"), (7, "hub", "fruit wax", "All in all.")],
        "All in all.", "hub said finish", (1,) * 8,
    ),
    Row(
        12, "handoff",
        {"desk": ["a payment", "billing"], "billing": ["refunded", "finish"]},
        [(0, "desk", "", "a payment"), (1, "desk", "a payment", "billing"),
         (2, "billing", "a payment", "refunded"), (3, "billing", "a payment refunded", "finish")],
        "refunded", "billing said finish", (1, 1, 1, 1),
    ),
    Row(
        13, "hierarchy",
        {"asker": ["cost?"], "ann": ["shade"], "bob": ["leaves"], "chair": ["plant"]},
        [(0, "asker", "", "cost?"), (0, "panel/ann", "", "shade"), (0, "panel/bob", "", "leaves"),
         (1, "panel", "cost?", "ann: shade\n\nbob: leaves"),
         (2, "chair", "ann: shade\n\nbob: leaves", "plant")],
        "plant", requests=(1, 2, 1),
    ),
    Row(
        14, "blackboard",
        {"astronomer": ["7", "size: small", "2", "0"], "poet": ["3", "9", "size: grand", "0"]},
        [(0, "astronomer", "", "7"), (0, "poet", "", "3"), (1, "astronomer", "", "size: small"),
         (2, "astronomer", "size: small", "2"), (2, "poet", "size: small", "9"),
         (3, "poet", "size: small", "size: grand"),
         (4, "astronomer", "size: small size: grand", "0"),
         (4, "poet", "size: small size: grand", "0")],
        "size: grand", "nobody bids", (2, 1, 2, 1, 2),
    ),
    Row(
        15, "publish-subscribe", {"desk": ["Bug: crash"], "engineer": ["fix: guard"]},
        [(0, "desk", "", "Bug: crash"), (1, "engineer", "Bug: crash", "fix: guard")],
        "fix: guard", "nobody hears anything new", (1, 1),
    ),
    Row(
        16, "mixture-of-agents",
        {"low-1": ["l1"], "low-2": ["l2"], "high-1": ["h1"], "high-2": ["h2"], "judge": ["j"]},
        [(0, "low-1", "", "l1"), (0, "low-2", "", "l2"), (1, "high-1", "l1 l2", "h1"),
         (1, "high-2", "l1 l2", "h2"), (2, "judge", "l1 l2 h1 h2", "j")],
        "j", requests=(2, 2, 1),
    ),
    Row(
        17, "router",
        {"router": ["sailor", "physicist"], "sailor": ["Answer: yes"], "physicist": ["Answer: no"]},
        [(0, "router", "", "sailor"), (1, "router", "", "physicist"),
         (2, "physicist", "", "Answer: no"), (2, "sailor", "", "Answer: yes")],
        "Answer: yes", requests=(1, 1, 2),
        notes=[{"votes": {"yes": 1.0, "no": 0.5}, "gate": {"sailor": 1.0, "physicist": 0.5}}],
    ),
    Row(
        18, "negotiation", {"buyer": ["50", "70"], "seller": ["90", "I accept 70"]},
        [(0, "buyer", "", "50"), (1, "seller", "50", "90"), (2, "buyer", "90", "70"),
         (3, "seller", "70", "I accept 70")],
        "I accept 70", "seller said 'accept'", (1, 1, 1, 1),
        [{"payoff": {"buyer": 70.0, "seller": 70.0}}],
    ),
    Row(
        19, "auction",
        {"auctioneer": ["one hour"], "bidder-1": ["5 coins"], "bidder-2": ["I bid 12"],
         "bidder-3": ["9"]},
        [(0, "auctioneer", "", "one hour"), (1, "bidder-1", "one hour", "5 coins"),
         (1, "bidder-2", "one hour", "I bid 12"), (1, "bidder-3", "one hour", "9")],
        "bidder-2 at 9", requests=(1, 3),
        notes=[
            {"payoff": {"auctioneer": 0.0, "bidder-1": 5.0, "bidder-2": 12.0, "bidder-3": 9.0}},
            {"bids": {"bidder-1": 5.0, "bidder-2": 12.0, "bidder-3": 9.0}, "winner": "bidder-2",
             "price": 9.0},
        ],
    ),
    Row(
        20, "game",
        {"player-1": ["heads", "tails", "tails"], "player-2": ["heads", "heads", "tails"]},
        [(0, "player-1", "", "heads"), (0, "player-2", "", "heads"),
         (1, "referee", "heads heads", '{"player-1": 1, "player-2": -1}'),
         (2, "player-1", '{"player-1": 1, "player-2": -1}', "tails"),
         (2, "player-2", '{"player-1": 1, "player-2": -1}', "heads"),
         (3, "referee", "tails heads", '{"player-1": -1, "player-2": 1}'),
         (4, "player-1", '{"player-1": -1, "player-2": 1}', "tails"),
         (4, "player-2", '{"player-1": -1, "player-2": 1}', "tails"),
         (5, "referee", "tails tails", '{"player-1": 1, "player-2": -1}')],
        '{"player-1": 1, "player-2": -1}', "3 rounds", (2, 2, 2),
        [{"payoff": {"player-1": 1.0, "player-2": -1.0}}],
    ),
    Row(
        21, "theory-of-mind",
        {"host": ["bob", "ann"], "bob": ['I think {"belief": "coat", "sure": 1}'], "ann": ["ok"]},
        [(0, "host", "", "bob"), (1, "bob", "", 'I think {"belief": "coat", "sure": 1}'),
         (2, "host", 'I think {"belief": "coat", "sure": 1}', "ann"),
         (3, "ann", 'I think {"belief": "coat", "sure": 1}', "ok")],
        "ok", "2 rounds", (1, 1, 1, 1),
    ),
    Row(
        22, "dynamic-team",
        {"ann": ["Answer: 5", "Answer: 5"], "bob": ["Answer: 6"], "cem": ["Answer: 5", "5"]},
        [(0, "ann", "", "Answer: 5"), (0, "bob", "", "Answer: 6"), (0, "cem", "", "Answer: 5"),
         (1, "ann", "Answer: 5 Answer: 5", "Answer: 5"), (1, "cem", "Answer: 5 Answer: 5", "5")],
        "Answer: 5", "2 rounds", (3, 2),
        [{"rewire": {"leave": ["bob"], "join": [], "roles": {}, "why": "kept 2 by agreement"}},
         {"votes": {"5": 2}}],
    ),
    Row(
        23, "graph-with-loop",
        {"writer": ["Snow", "Snow at last"], "critic": ["longer", "ok: Snow at last"],
         "press": ["SNOW AT LAST"]},
        [(0, "writer", "", "Snow"), (1, "critic", "Snow", "longer"),
         (2, "writer", "longer", "Snow at last"), (3, "critic", "Snow at last", "ok: Snow at last"),
         (4, "press", "ok: Snow at last", "SNOW AT LAST")],
        "SNOW AT LAST", "nobody hears anything new", (1, 1, 1, 1, 1),
    ),
    Row(
        24, "shared-cache", {"ann": ["cold", "light"], "bob": ["age", "cold"], "judge": ["both"]},
        [(0, "ann", "", "cold"), (0, "bob", "", "age"), (1, "ann", "cold age", "light"),
         (1, "bob", "cold age", "cold"), (2, "judge", "light cold", "both")],
        "both", "2 rounds", (2, 2, 1),
    ),
    Row(
        25, "federated", {},
        [(0, "server", "", '{"weights": {"slope": [0.0]}}'),
         (1, "north", "0.0", '{"weights": {"slope": [0.5]}, "examples": 30}'),
         (1, "south", "0.0", '{"weights": {"slope": [1.5]}, "examples": 10}'),
         (2, "server", "0.5 1.5", '{"weights": {"slope": [0.75]}, "examples": 40}'),
         (3, "north", "0.75", '{"weights": {"slope": [0.875]}, "examples": 30}'),
         (3, "south", "0.75", '{"weights": {"slope": [1.875]}, "examples": 10}'),
         (4, "server", "0.875 1.875", '{"weights": {"slope": [1.125]}, "examples": 40}'),
         (5, "north", "1.125", '{"weights": {"slope": [1.0625]}, "examples": 30}'),
         (5, "south", "1.125", '{"weights": {"slope": [2.0625]}, "examples": 10}')],
        '{"weights": {"slope": [1.3125]}, "examples": 40}', "6 rounds",
    ),
    Row(
        27, "human-in-the-loop", {"writer": ["Come to tea."]},
        [(0, "writer", "", "Come to tea."), (1, "host", "Come to tea.", "Please do.")],
        "Please do.", "1 of 1 answered", (1,),
    ),
    Row(
        29, "town",
        {name: [f"{name}1", f"{name}2"] for name in ("ann", "bob", "cem", "dot")},
        [(0, "ann", "", "ann1"), (0, "bob", "", "bob1"), (0, "cem", "", "cem1"),
         (0, "dot", "", "dot1"), (0, "news", "", "It rains."),
         (1, "ann", "ann1 cem1 It rains.", "ann2"), (1, "bob", "bob1 dot1 It rains.", "bob2"),
         (1, "cem", "bob1 cem1 It rains.", "cem2"), (1, "dot", "bob1 dot1 It rains.", "dot2"),
         (1, "news", "", "It rains.")],
        "", "2 rounds", (4, 4),
    ),
    Row(
        30, "map-reduce",
        {"mapper-1": ["one"], "mapper-2": ["two"], "editor": ["one and two"]},
        [(0, "mapper-1", "", "one"), (0, "mapper-2", "", "two"),
         (1, "editor", "one two", "one and two")],
        "one and two", requests=(2, 1), parts=("first", "second"),
    ),
]  # fmt: skip


def team_of(row: Row) -> Team:
    """The row's team, from its file."""
    path = TEAMS / f"{row.number:02}-{row.name}.toml"
    return load_team(path) if path.exists() else getattr(python_rows(), row.name)


async def ran(row: Row, engine: ScriptedEngine, log: EventLog) -> TeamResult:
    """The row's team at work."""

    def person(question: Question) -> str:
        return "Please do."

    material = Material("", row.parts)
    return await run(team_of(row), "", material, engine=engine, log=log, seed=2, ask=person)


def notes_of(log: EventLog) -> list[dict[str, object]]:
    """What the log notes beside the turns, in a fixed order."""
    return sorted((dict(event.body) for event in log.events("note")), key=lambda note: min(note))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number:02}-{row.name}")
async def test_a_mechanism_runs_exactly_so(row: Row) -> None:
    engine = speaking(row.said)
    with EventLog() as log:
        result = await ran(row, engine, log)
        found = trace(result)
        if row.number == 25:
            found = [(s, m, _slopes(heard), said) for s, m, heard, said in found]
        assert found == row.turns
        assert (result.result, result.why, result.outcome) == (row.result, row.why, "done")
        assert notes_of(log) == sorted(row.notes, key=lambda note: min(note))
    assert tuple(len(group) for group in engine.groups) == row.requests
    asked = [step for step in result.episode.steps if step.usage.prompt_tokens]
    words = sum(
        len(" ".join(f"<{m.role}> {m.content}" for m in s.prompt).split()) + len(s.output.split())
        for s in asked
    )
    assert len(asked) == sum(row.requests)
    assert result.episode.usage.asked_tokens == words


def _slopes(heard: str) -> str:
    """The numbers in the weights that were heard."""
    return " ".join(re.findall(r"\[([\d.]+)\]", heard))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number:02}-{row.name}")
async def test_a_mechanism_replays_the_same(row: Row) -> None:
    with EventLog() as first, EventLog() as second:
        one = await ran(row, speaking(row.said), first)
        other = await ran(row, speaking(row.said), second)
        assert trace(one) == trace(other)
        again = await ran(row, ScriptedEngine("nobody is asked again"), first)
    assert again.episode.steps == one.episode.steps


def test_every_mechanism_has_its_file_of_at_most_twelve_lines() -> None:
    files = {int(path.name[:2]): path for path in TEAMS.glob("*.toml")}
    in_python = {20, 25, 28, 29}
    assert set(files) | in_python == set(range(1, 31))
    assert not set(files) & in_python
    for path in files.values():
        text = path.read_text(encoding="utf-8").splitlines()
        assert len([line for line in text if line and not line.startswith("#")]) <= 12, path
    elsewhere = {26, 28}  # test_lockstep.py, test_interop.py
    assert {row.number for row in ROWS} | elsewhere == set(range(1, 31))


async def test_beliefs_travel_without_the_words_around_them() -> None:
    row = next(row for row in ROWS if row.number == 21)
    result = await ran(row, speaking(row.said), EventLog())
    seen = result.episode.steps[2].prompt[-1].content
    assert 'bob said: {"belief": "coat"}' in seen
    assert "sure" not in seen
    assert "I think" not in seen


async def test_what_comes_with_its_cache_is_marked_but_not_for_dense_members() -> None:
    row = next(row for row in ROWS if row.number == 24)
    result = await ran(row, speaking(row.said), EventLog())
    marks = [step.data.get("reusable") for step in result.episode.steps]
    keys = [step.key for step in result.episode.steps]
    assert marks == [None, None, keys[:2], keys[:2], None]


async def test_payoffs_are_told_to_all_members() -> None:
    row = next(row for row in ROWS if row.number == 18)
    result = await ran(row, speaking(row.said), EventLog())
    buyer, seller = (result.episode.steps[i].prompt[-1].content for i in (0, 1))
    told = "You gain 50% of the common result's worth and 50% of your own's."
    assert buyer.endswith(f"Your goal: Pay less than 100.\n{told}")
    assert seller.endswith(f"Your goal: Get more than 60.\n{told}")


@pytest.mark.parametrize(
    ("channels", "heard"),
    [("none", ["", "", ""]), ("chain", ["", "a1", "b1"]), ("bus", ["", "a1", "a1 b1"])],
)
async def test_the_visibility_masks_of_a_sequence_are_topologies(
    channels: str, heard: list[str]
) -> None:
    team = Team("t", members("a", "b", "c"), protocol("chain"), channels)
    assert [turn[2] for turn in trace(await run(team, "?", engine=numbered()))] == heard
