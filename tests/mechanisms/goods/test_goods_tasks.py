"""Tasks from files, answers out of texts, and generations that are kept and cut."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shoal.core.errors import ConfigError, InputError
from shoal.core.protocols import Sampling, Segment
from shoal.engine.local import LocalEngine
from shoal.engine.scripted import ScriptedEngine
from shoal.mechanisms.generations import Generations
from shoal.mechanisms.goods.prompts import ByAnswers, ByExample, Each, Heard
from shoal.mechanisms.goods.tasks import Task, answer_in, is_right, parse_tasks


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 12", "12"),
        ("So.\nanswer : -7.\n", "-7"),
        ("Answer: 3\nNo.\nAnswer: 4", "4"),
        ("The largest is 99, and 5 + 7 = 12", None),  # a number is no answer
        ("Answer:\n12", None),
        ("", None),
    ],
)
def test_an_answer_is_what_its_line_says(text: str, answer: str | None) -> None:
    assert answer_in(text) == answer


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [
        ("-7", "Answer: -7", True),
        ("-7", "Answer: 7", False),
        ("1/2", "Answer: 0.5", True),
        ("1200", "Answer: 1,200", True),
        ("Yes", "Answer: yes.", True),
        ("Yes", "Yes", False),
    ],
)
def test_numbers_are_equal_by_value_and_words_by_their_letters(
    answer: str, said: str, right: bool
) -> None:
    assert is_right(said, Task("?", answer)) is right


def test_tasks_are_read_line_by_line() -> None:
    text = '{"question": "1 + 1", "answer": 2}\n\n{"question": "?", "answer": "x", "solution": "y"}'
    assert parse_tasks(text, "t.jsonl") == (Task("1 + 1", "2"), Task("?", "x", "y"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "t.jsonl has no tasks"),
        ('{"question": "?"}', "t.jsonl, line 1: a wrong answer"),
        ('{"question": "?", "answer": "x"}\n{oops', "t.jsonl, line 2 is no JSON"),
        ("[1]", "t.jsonl, line 1: a wrong object"),
    ],
)
def test_a_file_of_tasks_that_is_none_names_the_line(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_tasks(text, "t.jsonl")


def test_examples_come_first_and_are_the_same_for_all() -> None:
    asking = ByExample((Task("1 + 1", "2", "1 + 1 = 2."),))
    first = asking("2 + 2", "anna", 1, 3, [])
    later = asking("3 + 3", "ben", 2, 3, [Heard("anna", " 3 + 3 = 6.\nAnswer: 6")])
    assert first[0] == later[0] == Segment("Question: 1 + 1\nSteps: 1 + 1 = 2.\nAnswer: 2\n\n")
    assert later[1] == Segment(
        "Question: 3 + 3\nSteps: 3 + 3 = 6.\nAnswer: 6\n\nQuestion: 3 + 3\nSteps:"
    )


def test_of_others_only_answers_are_heard_and_examples_show_as_many() -> None:
    asking = ByAnswers((Task("1 + 1", "2", "1 + 1 = 2."),), (("3", "2"),))
    first = asking("2 + 2", "anna", 1, 3, [])
    assert first == (
        Segment("Question: 1 + 1\nSteps: 1 + 1 = 2.\nAnswer: 2\n\n"),
        Segment("Question: 2 + 2\nSteps:"),
    )
    silent, wrong = Heard("anna", None), Heard("ben", "2 + 2 = 5.\nAnswer: 5")
    assert asking("2 + 2", "carl", 3, 3, [silent, wrong]) == (
        Segment("Question: 1 + 1\nSaid: 3, 2\nSteps: 1 + 1 = 2.\nAnswer: 2\n\n"),
        Segment("Question: 2 + 2\nSaid: ?, 5\nSteps:"),
    )
    assert asking("2 + 2", "ben", 2, 3, [wrong])[0].text.count("Said: 3\n") == 1


def test_examples_that_show_too_few_answers_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 examples, but 2 with what others said"):
        ByAnswers((Task("1 + 1", "2"),), (("2",), ("3",)))
    asking = ByAnswers((Task("1 + 1", "2"),), (("2",),))
    with pytest.raises(ConfigError, match="2 agents are heard, but examples show answers of 1"):
        asking("2 + 2", "carl", 3, 3, [Heard("anna", "4"), Heard("ben", "4")])


def test_each_agent_is_asked_in_its_own_way() -> None:
    ways = {name: ByExample((Task(name, "1"),)) for name in ("anna", "ben")}
    asking = Each(ways)
    assert asking("?", "ben", 2, 2, []) == ways["ben"]("?", "ben", 2, 2, [])
    assert asking.stop == ("\nQuestion:",)
    with pytest.raises(ConfigError, match="end their answers alike"):
        Each({**ways, "carl": ByExample((), stop=("\n\n",))})


async def test_a_shorter_answer_is_the_beginning_of_a_longer_one(tiny_model: Path) -> None:
    engine = LocalEngine.open(str(tiny_model), dtype="fp32", kv_bytes=1 << 20)
    known = Generations(engine, longest=24)
    prompt = (Segment("Once upon a time there was a"),)
    for sampling in (
        Sampling(),
        Sampling(temperature=0.9, top_k=40, presence_penalty=0.4, seed=3),
    ):
        for limit in (24, 5, 11):
            asked = Sampling(**{**_fields(sampling), "max_tokens": limit})
            (cut,) = await known.generate([prompt], [asked])
            fresh = Generations(engine, longest=limit)
            (own,) = await fresh.generate([prompt], [asked])
            assert (cut.text, cut.tokens, cut.whole) == (own.text, own.tokens, own.whole)
    assert known.made == 2
    await engine.close()


def _fields(sampling: Sampling) -> dict[str, object]:
    return {name: getattr(sampling, name) for name in Sampling.__dataclass_fields__}


async def test_what_was_generated_is_found_in_a_later_process(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    prompt, sampling = (Segment("one two"),), Sampling(max_tokens=5, temperature=1, seed=1)
    first = Generations(ScriptedEngine(), longest=5, path=path)
    (said,) = await first.generate([prompt], [sampling])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "half')  # a process that was stopped while it wrote
    later = Generations(ScriptedEngine(), longest=5, path=path)
    assert await later.generate([prompt], [sampling]) == [said]
    assert later.made == 0
    await later.generate([prompt], [Sampling(max_tokens=5, temperature=1, seed=2)])
    assert later.made == 1
    last = Generations(ScriptedEngine(), longest=5, path=path)
    await last.generate([prompt], [Sampling(max_tokens=5, temperature=1, seed=2)])
    assert last.made == 0


async def test_what_is_under_way_is_waited_for_and_not_generated_twice() -> None:
    known = Generations(ScriptedEngine("yes it is", delay=0.01), longest=5)
    prompt = (Segment("one"),)
    both = await asyncio.gather(*(known.generate([prompt], [Sampling()]) for _ in range(2)))
    assert [said.text for (said,) in both] == ["yes it is"] * 2
    assert known.made == 1


async def test_greedy_answers_are_the_same_whatever_the_seed() -> None:
    known = Generations(ScriptedEngine("yes"), longest=5)
    await known.generate([(Segment("one"),)] * 2, [Sampling(seed=1), Sampling(seed=2)])
    assert known.made == 1


async def test_an_answer_that_takes_too_long_is_none_and_others_are_not_lost() -> None:
    def say(messages: object, seed: int) -> str:
        return "one two three four" if seed else "yes"

    known = Generations(ScriptedEngine(say, delay=0.05), longest=5, seconds=0.12)
    prompt = (Segment("one"),)
    warm = [Sampling(temperature=1, seed=seed) for seed in (1, 0)]
    slow, quick = await known.generate([prompt] * 2, warm)
    assert (slow.text, quick.text) == (None, "yes")


async def test_an_answer_that_failed_is_none_and_is_tried_again() -> None:
    known = Generations(ScriptedEngine("yes", failures={0: "lost"}), longest=5)
    prompt = (Segment("one"),)
    (failed,) = await known.generate([prompt], [Sampling()])
    assert failed.text is None
    (said,) = await known.generate([prompt], [Sampling()])
    assert said.text == "yes"
