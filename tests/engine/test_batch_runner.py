"""Jobs on a real engine: nothing computed twice, nothing lost, nothing depending on company."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shoal.core.errors import EngineError, InputError, RemoteError, ShoalError
from shoal.core.protocols import Completion, Grammar, Request, Sampling, Score, Segment
from shoal.engine.batch.forecasting import look_ahead
from shoal.engine.batch.jobs import Asked, Response, Scored, Task
from shoal.engine.batch.journal import Journal
from shoal.engine.batch.prefixes import find_prefixes
from shoal.engine.batch.runner import BatchRun, prepare
from shoal.engine.local import LocalEngine
from shoal.engine.scripted import ScriptedEngine
from shoal.models.loading import Model, load

TOKEN_BYTES = 2 * 2 * 2 * 8 * 4
DOCUMENTS = [f"Document {d}. " + "word " * (10 + d) for d in range(5)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load(str(tiny_model), dtype="fp32")


def said(completions: Sequence[Completion]) -> Response:
    failed = next((one.error for one in completions if one.error), None)
    if failed is not None:
        return Response(400, {"error": failed})
    return Response(200, {"texts": [one.text for one in completions]})


def failed(error: ShoalError) -> Response:
    return Response(400, {"error": str(error)})


def task(name: str, *texts: str, **sampling: Any) -> Task:
    settings = Sampling(**{"max_tokens": 8, "ignore_eos": True, **sampling})
    requests = tuple(Request((Segment(text),), settings) for text in texts)
    return Task(name, Asked(requests, said), failed)


def scoring(name: str, prefix: str, *candidates: str) -> Task:
    def answer(scores: Sequence[Score]) -> Response:
        return Response(200, {"logprobs": [score.logprob for score in scores]})

    return Task(name, Scored((Segment(prefix),), candidates, answer), failed)


def job(questions: int = 6) -> list[Task]:
    """Questions about all documents, the documents in turn."""
    return [
        task(f"{d}-{q}", f"{text}Question {q}?", temperature=q % 2 * 0.8, seed=q)
        for q in range(questions)
        for d, text in enumerate(DOCUMENTS)
    ]


async def run(tasks: Sequence[Task], engine: Any, **options: Any) -> tuple[list[Any], Any]:
    found: dict[int, Response] = {}
    report = await BatchRun(tasks, engine, found.__setitem__, **options).run()
    return [found[line].body for line in sorted(found)], report


async def test_a_job_computes_its_tree_and_answers_as_an_engine_that_shares_nothing(
    model: Model,
) -> None:
    engine = LocalEngine(model, kv_bytes=250 * TOKEN_BYTES)
    bodies, report = await run(job(), engine, window=7)
    alone, _ = await run(job(), engine.unshared(), exclusive=False)
    assert bodies == alone
    prompts = [engine.encode(request.prompt) for one in job() for request in one.requests]
    tree = find_prefixes(prompts)
    assert report.prompt_tokens == tree.logical_tokens
    assert report.prefill_tokens == tree.tokens
    assert report.repeated_tokens == 0
    assert report.kv_high_water <= 250 * TOKEN_BYTES
    assert report.decoded_tokens == 30 * 8
    computed = sum(rows * count for rows, count in report.step_rows.items())
    assert computed == engine.counters.tokens_computed == tree.tokens + 30 * 7
    assert {span.prompts for span in report.spans} >= {6}
    assert engine.kv_bytes_used == 0
    await engine.close()


@pytest.mark.parametrize("level", ["single", "greedy", "none"])
async def test_every_level_gives_the_same_answers(model: Model, level: str) -> None:
    engine = LocalEngine(model)
    bodies, report = await run(job(3), engine, level=level)
    again, _ = await run(job(3), engine)
    assert bodies == again
    prepared = await prepare(job(3), engine)
    plan = prepared.plan(level=level, engine=engine)  # type: ignore[arg-type]
    assert report.prefill_tokens == plan.processed_tokens
    await engine.close()


async def test_an_over_long_request_fails_alone(model: Model) -> None:
    engine = LocalEngine(model, kv_bytes=300 * TOKEN_BYTES)
    tasks = [task("short", "short"), task("long", "x" * 301), task("also", "short too")]
    bodies, report = await run(tasks, engine)
    assert [list(body) for body in bodies] == [["texts"], ["error"], ["texts"]]
    assert "the KV cache holds 300" in bodies[1]["error"]
    assert report.failed == 1
    assert engine.kv_bytes_used == 0
    await engine.close()


async def test_a_request_that_cannot_be_encoded_or_compiled_fails_alone(model: Model) -> None:
    engine = LocalEngine(model)
    broken = Request((Segment("x"),), grammar=Grammar("json_schema", "{"))
    tasks = [
        task("half", "half \ud800"),
        Task("grammar", Asked((broken,), said), failed),
        task("fine", "fine"),
    ]
    bodies, _ = await run(tasks, engine)
    assert [list(body) for body in bodies] == [["error"], ["error"], ["texts"]]
    assert engine.kv_bytes_used == 0
    await engine.close()


async def test_equal_prompts_are_read_once_and_all_answered(model: Model) -> None:
    engine = LocalEngine(model)
    tasks = [task(str(n), "the very same prompt", temperature=1.0, seed=n) for n in range(6)]
    bodies, report = await run(tasks, engine)
    assert report.prefill_tokens == len("the very same prompt")
    assert len({body["texts"][0] for body in bodies}) == 6
    await engine.close()


async def test_a_prompt_that_begins_others_is_answered(model: Model) -> None:
    engine = LocalEngine(model)
    tasks = [task("whole", "abcdef"), task("part", "abc"), task("more", "abcdefghi")]
    bodies, report = await run(tasks, engine)
    alone, _ = await run(tasks, engine.unshared(), exclusive=False)
    assert bodies == alone
    assert report.prefill_tokens == 9
    await engine.close()


async def test_salts_never_share(model: Model) -> None:
    engine = LocalEngine(model)
    sampling = Sampling(max_tokens=1)
    salted = [Request((Segment("same"),), sampling, salt=salt) for salt in ("a", "b")]
    tasks = [Task(request.salt, Asked((request,), said), failed) for request in salted]
    _, report = await run(tasks, engine)
    assert report.prefill_tokens == 2 * len("same")
    await engine.close()


async def test_several_prompts_and_choices_of_a_line_stay_together(model: Model) -> None:
    engine = LocalEngine(model)
    bodies, _ = await run([task("two", "first", "second"), task("one", "third")], engine)
    assert [len(body["texts"]) for body in bodies] == [2, 1]
    await engine.close()


async def test_scores_share_their_context_with_other_lines(model: Model) -> None:
    engine = LocalEngine(model)
    context = "The capital of France is"
    tasks = [
        scoring("one", context, " Paris", " Rome"),
        scoring("two", context, " Bonn"),
        scoring("bad", "", "x"),
        task("three", context),
    ]
    bodies, report = await run(tasks, engine)
    plain = LocalEngine(model)
    expected = await plain.score((Segment(context),), [" Paris", " Rome", " Bonn"])
    assert bodies[0]["logprobs"] + bodies[1]["logprobs"] == pytest.approx(
        [score.logprob for score in expected]
    )
    assert "prefix" in bodies[2]["error"]
    # the context once; below it its last token with each set of endings but their last tokens
    endings = 1 + len(" ") + len("Pari") + len("Rom") + 1 + len(" Bon")
    assert report.prefill_tokens == len(context) + endings
    assert engine.kv_bytes_used == 0
    await plain.close()
    await engine.close()


async def test_lines_that_have_results_are_skipped(model: Model) -> None:
    engine = LocalEngine(model)
    found: dict[int, Response] = {}
    tasks = job(2)
    report = await BatchRun(tasks, engine, found.__setitem__, skip=frozenset(range(8))).run()
    assert sorted(found) == [8, 9]
    assert report.lines == 2
    await engine.close()


async def test_cancelling_keeps_what_has_come_and_frees_the_engine(model: Model) -> None:
    engine = LocalEngine(model)
    found: dict[int, Response] = {}

    def result(line: int, response: Response) -> None:
        found[line] = response
        if len(found) == 5:
            running.cancel()

    tasks = [task(str(n), f"{n} bottles", max_tokens=3 + 4 * n) for n in range(20)]
    running = asyncio.ensure_future(BatchRun(tasks, engine, result, window=3).run())
    with pytest.raises(asyncio.CancelledError):
        await running
    assert 5 <= len(found) < 20
    assert engine.kv_bytes_used == 0
    rest, report = await run(tasks, engine, skip=frozenset(found))
    assert len(rest) + len(found) == 20
    assert report.lines == 20 - len(found)
    await engine.close()


async def test_a_busy_engine_is_not_taken_over(model: Model) -> None:
    engine = LocalEngine(model)
    request = Request((Segment("long"),), Sampling(max_tokens=1000, ignore_eos=True))
    chat = asyncio.create_task(engine.generate([request]))
    await asyncio.sleep(0.1)
    with pytest.raises(EngineError, match="busy"):
        await run([task("one", "one")], engine)
    chat.cancel()
    await asyncio.gather(chat, return_exceptions=True)
    await engine.close()


async def test_other_engines_answer_jobs_too() -> None:
    bodies, report = await run(job(2), ScriptedEngine("yes"))
    assert [body["texts"] for body in bodies] == [["yes"]] * 10
    words = {text: len(f"{text}Question".split()) for text in DOCUMENTS}
    assert report.prompt_tokens == 2 * sum(words.values()) + 2 * 5
    assert report.saving > 40


async def test_an_endpoint_that_fails_some_lines_leaves_them_for_the_next_run() -> None:
    engine = ScriptedEngine("yes", failures={1: RemoteError("It is down.")})
    found: dict[int, Response] = {}
    tasks = job(1)
    with pytest.raises(EngineError, match=r"1 lines were not answered \(It is down.\)"):
        await BatchRun(tasks, engine, found.__setitem__).run()
    assert len(found) == 4
    await BatchRun(tasks, engine, found.__setitem__, skip=frozenset(found)).run()
    assert len(found) == 5


async def test_an_endpoint_that_is_gone_stops_the_run() -> None:
    engine = ScriptedEngine("yes", failures=dict.fromkeys(range(100), RemoteError("Gone.")))
    with pytest.raises(RemoteError, match="Gone"):
        await run(job(20), engine, window=4)


async def test_the_outlook_names_groups_savings_memory_and_time(model: Model) -> None:
    engine = LocalEngine(model)
    tasks = [*job(), task("long", "x" * 3000)]
    outlook = await look_ahead(tasks, engine)
    _, report = await run(job(), engine)
    assert outlook.computed_tokens == report.prefill_tokens
    assert outlook.prompt_tokens == report.prompt_tokens
    assert (outlook.lines, outlook.failing) == (31, 1)
    assert outlook.peak_kv_bytes is not None and outlook.seconds is not None
    assert outlook.peak_kv_bytes >= report.kv_high_water
    assert outlook.seconds > 0
    assert any("1 lines cannot be answered" in sentence for sentence in outlook.sentences())
    by_text = await look_ahead(job(), ScriptedEngine("yes"))
    assert not by_text.exact
    assert by_text.saving == pytest.approx(outlook.saving, abs=1)  # bytes are this model's tokens
    await engine.close()


# -- the journal --------------------------------------------------------------------------


def test_results_come_out_in_the_order_of_the_input(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    with Journal(out, "job") as journal:
        for place in (2, 0, 1):
            journal.add(place, {"place": place, "text": "ü\u2028"})
        journal.add(0, {"place": "again"})
        assert not out.exists()
        journal.finish()
    assert [json.loads(line)["place"] for line in out.read_bytes().splitlines()] == [0, 1, 2]
    assert list(out.parent.iterdir()) == [out]


def test_a_killed_process_loses_at_most_half_a_line(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, "job") as journal:
        journal.add(3, {"n": 3})
        journal.add(1, {"n": 1})
    part = out.with_name("out.jsonl.part")
    whole = part.read_bytes()
    for cut in range(len(whole)):
        part.write_bytes(whole[:cut])
        with Journal(out, "job") as journal:
            assert journal.done == {
                place for place, end in ((3, b'{"n": 3}\n'), (1, b'{"n": 1}\n'))
                if end in whole[:cut]
            }  # fmt: skip
            journal.add(7, {"n": 7})
            assert json.loads(journal.result(7)) == {"n": 7}
        with Journal(out, "job") as journal:
            assert 7 in journal.done


def test_results_of_another_job_are_not_taken(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, "job") as journal:
        journal.add(0, {})
    with pytest.raises(InputError, match="another job"):
        Journal(out, "other")
    out.with_name("out.jsonl.part").write_text("something else\n")
    with pytest.raises(InputError, match="another job"):
        Journal(out, "job")
    assert out.with_name("out.jsonl.part").read_text() == "something else\n"


def test_an_output_is_not_written_over_nor_written_by_two(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, "job"), pytest.raises(InputError, match="Another process"):
        Journal(out, "job")
    out.write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        Journal(out, "job")
    assert out.read_text() == "precious"


async def test_a_group_larger_than_memory_runs_in_waves_that_keep_its_prefix(model: Model) -> None:
    text = "A long document. " + "word " * 40
    tasks = [task(str(q), f"{text}Question {q}, in other words?") for q in range(24)]
    engine = LocalEngine(model, kv_bytes=1 << 20)
    prompts = [engine.encode(request.prompt) for one in tasks for request in one.requests]
    tree = find_prefixes(prompts)
    small = tree.tokens * 2 // 3
    assert max(map(len, prompts)) + 8 < small < tree.tokens + 24 * 8
    engine = LocalEngine(model, kv_bytes=small * TOKEN_BYTES)
    bodies, report = await run(tasks, engine)
    alone, _ = await run(tasks, engine.unshared(), exclusive=False)
    assert bodies == alone
    assert report.prefill_tokens == tree.tokens
    assert report.kv_high_water <= small * TOKEN_BYTES
