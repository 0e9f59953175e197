"""What the local engine promises: nothing computed twice, no answer changed by company."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.core.errors import EngineError
from shoal.core.protocols import Completion, Delta, Grammar, Request, Sampling, Segment
from shoal.core.records import Message, ToolSpec
from shoal.engine.local import LocalEngine
from shoal.models.loading import Model, load


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load(str(tiny_model), dtype="fp32")


@pytest.fixture
async def engine(model: Model) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(model, kv_bytes=64 << 20)
    yield engine
    await engine.close()


def ask(text: str, **sampling: object) -> Request:
    settings = {"max_tokens": 12, "ignore_eos": True, **sampling}
    return Request((Segment(text),), Sampling(**settings))  # type: ignore[arg-type]


def essence(completion: Completion) -> tuple[object, ...]:
    return completion.tokens, completion.text, completion.finish


async def alone(model: Model, request: Request) -> Completion:
    """The same request in an engine of its own that shares nothing."""
    engine = LocalEngine(model, sharing=False, kv_bytes=16 << 20)
    (completion,) = await engine.generate([request])
    await engine.close()
    return completion


def tree_size(prompts: list[str]) -> int:
    """Distinct prefixes of all prompts: what has to be computed at the least."""
    return len({prompt[:end].encode() for prompt in prompts for end in range(1, len(prompt) + 1)})


async def test_a_group_computes_each_shared_token_once(engine: LocalEngine) -> None:
    story = "It was a dark and stormy night. " * 20
    prompts = [story + end for end in ("Who?", "Why?", "When did it rain?", "Who came?")]
    answers = await engine.generate([ask(prompt, max_tokens=1) for prompt in prompts])
    assert engine.counters.tokens_computed == tree_size(prompts)
    usage = [answer.usage for answer in answers]
    assert sum(each.computed_prompt_tokens for each in usage) == tree_size(prompts)
    assert [each.prompt_tokens for each in usage] == [len(prompt) for prompt in prompts]


async def test_random_groups_compute_exactly_their_tree(model: Model) -> None:
    draw = random.Random(5)
    for _ in range(10):
        engine = LocalEngine(model)
        prompts = ["".join(draw.choices("ab", k=draw.randint(1, 9))) for _ in range(20)]
        await engine.generate([ask(prompt, max_tokens=1) for prompt in prompts])
        assert engine.counters.tokens_computed == tree_size(prompts)
        await engine.close()


async def test_equal_prompts_compute_one_prompt_and_their_own_answers(engine: LocalEngine) -> None:
    group = [ask("same " * 30, temperature=1.0, seed=seed) for seed in range(5)]
    answers = await engine.generate(group)
    assert len({answer.text for answer in answers}) == 5
    assert engine.counters.tokens_computed == 150 + 5 * 11  # the last token needs no cache
    assert [answer.usage.shared_tokens for answer in answers] == [0, 150, 150, 150, 150]


async def test_the_next_turn_finds_prompt_and_answer(engine: LocalEngine) -> None:
    (first,) = await engine.generate([ask("Once upon a time", max_tokens=20)])
    follow = Request(
        (Segment("Once upon a time"), Segment(tokens=first.tokens), Segment(" and then")),
        Sampling(max_tokens=4, ignore_eos=True),
    )
    (second,) = await engine.generate([follow])
    assert second.usage.prompt_tokens == 16 + 20 + 9
    assert second.usage.shared_tokens == 16 + 19


async def test_a_prompt_that_begins_a_known_one_recomputes_one_token(engine: LocalEngine) -> None:
    await engine.generate([ask("abcdefgh", max_tokens=1)])
    before = engine.counters.tokens_computed
    (answer,) = await engine.generate([ask("abcde")])
    assert answer.usage.shared_tokens == 4
    assert engine.counters.tokens_computed - before == 1 + 11


async def test_salts_keep_caches_apart(engine: LocalEngine) -> None:
    request = ask("a secret shared by nobody")
    await engine.generate([request])
    other = Request(request.prompt, request.sampling, salt="someone else")
    (answer,) = await engine.generate([other])
    assert answer.usage.shared_tokens == 0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
async def test_an_answer_does_not_depend_on_company_or_sharing(
    model: Model, engine: LocalEngine, temperature: float
) -> None:
    draw = random.Random(1)
    base = "The quick brown fox jumps over the lazy dog. " * 3
    group = [
        ask(
            base[: draw.randint(1, len(base))] + "x" * draw.randint(0, 40),
            temperature=temperature,
            seed=seed,
            max_tokens=draw.randint(1, 90),
            repetition_penalty=1.2 if seed % 3 == 0 else 1.0,
            presence_penalty=0.7 if seed % 4 == 0 else 0.0,
        )
        for seed in range(12)
    ]
    together = await engine.generate(group)
    for request, answer in zip(group, together, strict=True):
        assert essence(answer) == essence(await alone(model, request))


async def test_a_presence_penalty_keeps_words_from_coming_again(engine: LocalEngine) -> None:
    texts = [ask("la la la ", max_tokens=24, presence_penalty=p) for p in (0.0, 2.0)]
    plain, penalised = await engine.generate(texts)
    assert len(set(penalised.tokens)) > len(set(plain.tokens))


async def test_full_memory_means_waiting_or_recomputing_never_failing(model: Model) -> None:
    token_bytes = 2 * 2 * 2 * 8 * 4
    tight = LocalEngine(model, kv_bytes=260 * token_bytes)
    group = [ask(f"{n} bottles of beer " * 4, max_tokens=100) for n in range(6)]
    answers = await tight.generate(group)
    for request, answer in zip(group, answers, strict=True):
        assert answer.error is None
        assert essence(answer) == essence(await alone(model, request))
    assert tight.kv_bytes_used <= 260 * token_bytes
    await tight.close()


async def test_preempted_answers_are_what_they_would_have_been(model: Model) -> None:
    token_bytes = 2 * 2 * 2 * 8 * 4
    tight = LocalEngine(model, kv_bytes=300 * token_bytes)
    tight._scheduler._has_room = lambda job, promised: True  # type: ignore[method-assign]
    group = [ask(f"{n} green bottles " * 3, max_tokens=80) for n in range(5)]
    heard = [""] * len(group)

    def hear(piece: Delta) -> None:
        heard[piece.index] += piece.text

    answers = await tight.generate(group, on_delta=hear)
    assert heard == [answer.text for answer in answers]  # who listens hears nothing twice
    assert tight.load.preemptions == tight._scheduler.preemptions > 0
    assert sum(answer.usage.recomputed_tokens for answer in answers) > 0
    for request, answer in zip(group, answers, strict=True):
        assert essence(answer) == essence(await alone(model, request))
    await tight.close()


async def test_an_over_long_request_fails_alone(engine: LocalEngine) -> None:
    answers = await engine.generate([ask("short"), ask("x" * 5000), ask("also short")])
    assert [answer.finish for answer in answers] == ["length", "error", "length"]
    assert "5000 tokens, but the context" in (answers[1].error or "")


async def test_empty_prompts_and_foreign_tokens_fail_alone(engine: LocalEngine) -> None:
    answers = await engine.generate([ask(""), Request((Segment(tokens=(10**6,)),)), ask("ok")])
    assert [answer.finish for answer in answers] == ["error", "error", "length"]


async def test_text_streams_in_order_and_whole(engine: LocalEngine) -> None:
    pieces: dict[int, list[Delta]] = {0: [], 1: []}
    group = [ask("one", max_tokens=30, temperature=1.0), ask("two", max_tokens=25)]
    answers = await engine.generate(group, on_delta=lambda d: pieces[d.index].append(d))
    await asyncio.sleep(0)
    for index, answer in enumerate(answers):
        assert "".join(delta.text for delta in pieces[index]) == answer.text
        assert sum((delta.tokens for delta in pieces[index]), ()) == answer.tokens


async def test_stop_strings_end_the_answer_and_never_show(engine: LocalEngine) -> None:
    (whole,) = await engine.generate([ask("tell me", max_tokens=60, temperature=1.0, seed=2)])
    stop = whole.text[20:23]
    shown: list[str] = []
    request = ask("tell me", max_tokens=60, temperature=1.0, seed=2, stop=("zzzz", stop))
    (cut,) = await engine.generate([request], on_delta=lambda delta: shown.append(delta.text))
    assert cut.finish == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)] == "".join(shown)


async def test_the_end_token_stops_unless_it_is_too_early(model: Model) -> None:
    engine = LocalEngine(model)
    end = min(model.tokenizer.eos_ids)
    for minimum in (0, 7):
        sampling = Sampling(max_tokens=400, temperature=3.0, seed=1, min_tokens=minimum)
        (answer,) = await engine.generate([Request((Segment("go"),), sampling)])
        if answer.finish == "stop":
            assert answer.tokens[-1] == end
            assert len(answer.tokens) > minimum
    await engine.close()


async def test_cancelling_frees_everything(engine: LocalEngine) -> None:
    task = asyncio.create_task(engine.generate([ask("never ending", max_tokens=1900)]))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (answer,) = await engine.generate([ask("still alive")])
    assert answer.finish == "length"
    assert not engine._scheduler.running


async def test_scores_equal_the_logprobs_of_forced_tokens(engine: LocalEngine) -> None:
    prefix = (Segment("The capital of France is"),)
    candidates = [" Paris", " Paris!", " Rome", " a", " Paris"]
    scores = await engine.score(prefix, candidates)
    assert [score.text for score in scores] == candidates
    for candidate, score in zip(candidates, scores, strict=True):
        assert score.logprob == pytest.approx(sum(score.token_logprobs))
        grammar = Grammar("choice", (candidate,))
        sampling = Sampling(max_tokens=20, logprobs=0)
        (forced,) = await engine.generate([Request(prefix, sampling, grammar)])
        assert forced.text == candidate
        expected = [each.logprob for each in forced.logprobs][: len(score.token_logprobs)]
        assert score.token_logprobs == pytest.approx(expected, abs=1e-4)


async def test_scoring_computes_prefix_and_shared_beginnings_once(engine: LocalEngine) -> None:
    prefix = "q" * 100
    before = engine.counters.tokens_computed
    await engine.score((Segment(prefix),), ["abcX", "abcY", "abd", "z"])
    # 99 of the prefix, its last token, then a-b-c, d is last: a b c | X, Y, d, z need no row
    assert engine.counters.tokens_computed - before == 99 + 1 + 3
    kept = engine.kv_bytes_used // engine._pool.token_bytes
    assert kept == 99


async def test_grammars_are_obeyed(engine: LocalEngine) -> None:
    sampling = Sampling(max_tokens=60, temperature=1.5, seed=4)
    prompt = (Segment("answer:"),)
    group = [
        Request(prompt, sampling, Grammar("choice", ("alice", "bob"))),
        Request(prompt, sampling, Grammar("regex", r"[0-9]{3}-[a-z]{2}")),
        Request(prompt, sampling, Grammar("json_schema", '{"type": "boolean"}')),
    ]
    choice, regex, schema = await engine.generate(group)
    assert choice.text in ("alice", "bob")
    assert len(regex.text) == 6
    assert regex.text[:3].isdigit()
    assert schema.text in ("true", "false")
    assert choice.finish == regex.finish == schema.finish == "stop"


async def test_a_broken_grammar_fails_alone(engine: LocalEngine) -> None:
    broken = Request((Segment("x"),), Sampling(), Grammar("json_schema", '{"type": 7}'))
    bad, good = await engine.generate([broken, ask("fine")])
    assert bad.finish == "error"
    assert "grammar is not valid" in (bad.error or "")
    assert good.finish == "length"


async def test_embeddings_are_unit_vectors_of_their_text(engine: LocalEngine) -> None:
    vectors = await engine.embed(["one", "two", "one"])
    assert vectors.shape == (3, 48)
    assert (vectors**2).sum(1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)


async def test_a_closed_engine_says_so(model: Model) -> None:
    engine = LocalEngine(model)
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await engine.generate([ask("hello?")])


async def test_messages_go_through_the_chat_template(engine: LocalEngine) -> None:
    prompt = (Message("user", "hi"),)
    assert engine.count_tokens(prompt) == 1 + len("user\nhi") + 1 + 1 + 1 + len("assistant\n")


async def test_tools_are_refused_where_the_template_would_ignore_them(engine: LocalEngine) -> None:
    request = Request((Message("user", "hi"),), tools=(ToolSpec("look", "Look it up."),))
    (answer,) = await engine.generate([request])
    assert answer.finish == "error"
    assert "ignores tools" in (answer.error or "")


async def test_no_tokens_asked_for_computes_the_prompt_for_those_who_come(
    engine: LocalEngine,
) -> None:
    (warm,) = await engine.generate([ask("a long document " * 10, max_tokens=0)])
    assert (warm.tokens, warm.finish) == ((), "length")
    (next_,) = await engine.generate([ask("a long document " * 10, max_tokens=1)])
    assert next_.usage.shared_tokens == next_.usage.prompt_tokens == 160


async def test_an_unknown_adapter_fails_alone(engine: LocalEngine) -> None:
    request = Request((Segment("hi"),), Sampling(max_tokens=2), adapter="poet")
    bad, good = await engine.generate([request, ask("hi")])
    assert "no adapter 'poet'" in (bad.error or "")
    assert good.error is None


async def test_a_stop_string_before_the_least_length_does_not_count(engine: LocalEngine) -> None:
    (whole,) = await engine.generate([ask("tell me", max_tokens=60, temperature=1.0, seed=2)])
    stop = whole.text[3:6]
    request = ask("tell me", max_tokens=60, temperature=1.0, seed=2, stop=(stop,), min_tokens=20)
    shown: list[str] = []
    (cut,) = await engine.generate([request], on_delta=lambda delta: shown.append(delta.text))
    assert "".join(shown) == cut.text
    assert len(cut.tokens) >= 20
    assert whole.text.startswith(cut.text)
