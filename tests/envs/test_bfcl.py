"""BFCL's items: every ground truth is right, whatever the dialect, and bad ones are named."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from shoal.core.errors import ConfigError, InputError
from shoal.envs.bfcl import CATEGORIES, HELD_OUT, Bfcl, Item, MissingData, data_folder, read_items
from shoal.envs.calls import Answer, Call, dialect
from shoal.training.rewards import VARIANTS

COUNTS = {
    "simple_python": 400, "multiple": 200, "parallel": 200, "parallel_multiple": 200,
    "live_simple": 258, "live_multiple": 1053, "live_parallel": 16, "live_parallel_multiple": 24,
    "irrelevance": 240, "live_irrelevance": 884,
}  # fmt: skip
real = pytest.mark.skipif(
    importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval's data is not installed"
)


def items(category: str) -> list[Item]:
    return read_items(data_folder(), category)[0]


def right(item: Item) -> Answer:
    if item.wanted.calls:
        return item.wanted.example()
    return Answer((), ("response",), response="No tool fits.")


@real
@pytest.mark.parametrize("category", CATEGORIES)
def test_every_ground_truth_is_exactly_right(category: str) -> None:
    found, rejected = read_items(data_folder(), category)
    assert len(found) + len(rejected) == COUNTS[category]
    assert len(rejected) <= 3 and all(one.id in one.reason for one in rejected)
    for name in ("hermes", "tags"):
        spoken = dialect(name)
        for item in found:
            told = VARIANTS["original"].score(item.wanted, spoken.read(spoken.write(right(item))),
                                              spoken)  # fmt: skip
            assert told.marks["exact"] == 1, item.id
            assert told.total == (4 if item.wanted.calls else 1), item.id


@real
def test_a_call_too_many_or_too_few_costs_what_the_formula_says() -> None:
    spoken = dialect("hermes")
    for item in items("simple_python")[:100]:
        (call,) = item.wanted.calls
        (said,) = item.wanted.example().calls
        keys = len(said.arguments)
        most = 2 + keys
        twice = VARIANTS["original"].score(item.wanted, Answer((said, said), ("calls",)), spoken)
        # names: 1 of 2; everything else as it should be
        assert twice.parts["original"] == pytest.approx(6 * (most - 0.5) / most - 3)
        other = VARIANTS["original"].score(
            item.wanted, Answer((Call("other", said.arguments),), ("calls",)), spoken
        )
        assert other.parts["original"] == -3
        first = next(iter(said.arguments))
        less = Call(said.name, {k: v for k, v in said.arguments.items() if k != first})
        told = VARIANTS["original"].score(item.wanted, Answer((less,), ("calls",)), spoken)
        assert first not in call.optional
        assert told.parts["original"] == pytest.approx(
            6 * (1 + (keys - 1) / keys + keys - 1) / most - 3
        )


@real
def test_irrelevant_items_want_no_call() -> None:
    env = Bfcl(["irrelevance"])
    env.reset(0)
    assert env.step("I cannot do that.").solved
    env.reset(0)
    name = env.tools[0].name
    assert not env.step(f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>').solved


@real
def test_held_out_items_are_never_trained_on() -> None:
    env = Bfcl(["simple_python", "multiple"], longest=900)
    train = {item.id for item in env.train}
    held_out = {item.id for item in env.held_out}
    assert not train & held_out and len(held_out) == pytest.approx(len(train) / 4, abs=1)
    assert all(len(env.reset(seed)) <= 901 for seed in [*range(50), HELD_OUT, HELD_OUT + 1])
    assert env.reset(0) == env.reset(len(env.train))
    assert env.reset(HELD_OUT) != env.reset(0)


def test_without_the_data_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingData, match="pip install --no-deps bfcl-eval"):
        Bfcl()


@real
def test_the_package_itself_is_never_imported() -> None:
    Bfcl(["parallel"])
    assert "bfcl_eval" not in sys.modules


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "possible_answer").mkdir()
    tool = {
        "name": "f",
        "parameters": {"type": "dict", "properties": {"a": {"type": "float"}}, "required": ["a"]},
    }
    question = [[{"role": "user", "content": "Do it."}]]
    truths = {
        "good": [{"f": {"a": [1.5, 2]}}],
        "optional": [{"f": {"a": [1, ""]}}],
        "unknown tool": [{"g": {"a": [1]}}],
        "no list": [{"f": {"a": 1}}],
        "two names": [{"f": {"a": [1]}, "g": {}}],
        "nan": [{"f": {"a": [float("nan")]}}],
        "good too": [{"f": {"a": [3]}}],
    }
    with (tmp_path / "BFCL_v4_parallel.json").open("w") as file:
        for id_ in [*truths, "no truth"]:
            file.write(json.dumps({"id": id_, "question": question, "function": [tool]}) + "\n")
    with (tmp_path / "possible_answer" / "BFCL_v4_parallel.json").open("w") as file:
        for id_, truth in truths.items():
            file.write(json.dumps({"id": id_, "ground_truth": truth}) + "\n")
    return tmp_path


def test_malformed_truths_are_rejected_by_their_ids(folder: Path) -> None:
    found, rejected = read_items(folder, "parallel")
    assert [item.id for item in found] == ["good", "optional", "good too"]
    assert [one.id for one in rejected] == [
        "unknown tool", "no list", "two names", "nan", "no truth"
    ]  # fmt: skip
    env = Bfcl(["parallel"], apart=2, folder=str(folder))
    assert len(env.rejected) == 5 and len(env.held_out) == 2
    assert found[0].tools[0].parameters["properties"]["a"]["type"] == "number"
    assert found[1].wanted.calls[0].optional == {"a"}


def test_categories_and_files_that_are_not_there_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'parallel'"):
        Bfcl(["paralel"], folder=str(folder))
    with pytest.raises(InputError, match=r"BFCL_v4_multiple\.json"):
        Bfcl(["multiple"], folder=str(folder))
    with pytest.raises(ConfigError, match="at most 3 characters"):
        Bfcl(["parallel"], folder=str(folder), longest=3)
