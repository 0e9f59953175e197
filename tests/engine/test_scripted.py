"""The scripted engine keeps the engine protocol and counts like an ideal prefix cache."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import EngineError
from shoal.core.protocols import Delta, Engine, Grammar, Request, Sampling, Segment
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine


def ask(text: str, **sampling: object) -> Request:
    return Request((Message("user", text),), Sampling(**sampling))  # type: ignore[arg-type]


async def texts(engine: ScriptedEngine, *requests: Request) -> list[str]:
    return [completion.text for completion in await engine.generate(requests)]


def test_it_is_an_engine() -> None:
    engine: Engine = ScriptedEngine()
    assert engine.info.kind == "scripted"
    assert engine.info.sharing
    assert engine.info.exact_counts


async def test_answers_come_from_a_function_a_mapping_a_sequence_or_a_text() -> None:
    by_function = ScriptedEngine(lambda messages, seed: f"{messages[-1].content} {seed}")
    assert await texts(by_function, ask("hi", seed=7)) == ["hi 7"]
    by_key = ScriptedEngine({"red": "stop", "green": "go"})
    assert await texts(by_key, ask("is it green?"), ask("red"), ask("blue")) == ["go", "stop", ""]
    in_turn = ScriptedEngine(["one", "two"])
    assert await texts(in_turn, ask("a"), ask("b")) == ["one", "two"]
    assert await texts(in_turn, ask("c")) == ["two"]
    assert await texts(ScriptedEngine("same"), ask("a"), ask("b")) == ["same", "same"]


async def test_default_answers_are_words_of_the_prompt_drawn_by_the_seed() -> None:
    first = await texts(ScriptedEngine(), ask("alpha beta gamma delta", seed=1))
    assert first == await texts(ScriptedEngine(), ask("alpha beta gamma delta", seed=1))
    assert first != await texts(ScriptedEngine(), ask("alpha beta gamma delta", seed=2))
    assert set(first[0].split()) <= {"alpha", "beta", "gamma", "delta"}


def common_prefix(a: list[str], b: list[str]) -> int:
    """How many leading words two lists have in common."""
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=6), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_shared_tokens_are_the_longest_common_prefix_with_anything_before(
    prompts: list[list[str]], group: int
) -> None:
    """The trie against a plain comparison with all earlier prompts."""
    engine = ScriptedEngine("x")
    requests = [ask(" ".join(words)) for words in prompts]
    usages = []
    for start in range(0, len(requests), group):
        done = asyncio.run(engine.generate(requests[start : start + group]))
        usages += [completion.usage for completion in done]
    for i, (words, usage) in enumerate(zip(prompts, usages, strict=True)):
        whole = ["<user>", *words]
        common = max(
            (common_prefix(whole, ["<user>", *before]) for before in prompts[:i]),
            default=0,
        )
        assert usage.prompt_tokens == len(whole)
        assert usage.shared_tokens == min(common, len(whole) - 1)
        assert usage.first_token_ms == usage.computed_prompt_tokens
        assert usage.total_ms == usage.first_token_ms + 10 * usage.decoded_tokens


async def test_nothing_is_shared_without_sharing_or_between_salts() -> None:
    alone = ScriptedEngine("x", sharing=False)
    assert [c.usage.shared_tokens for c in await alone.generate([ask("a b"), ask("a b")])] == [0, 0]
    salted = ScriptedEngine("x")
    message = (Message("user", "a b"),)
    pair = [Request(message, salt="one"), Request(message, salt="two"), Request(message)]
    assert [c.usage.shared_tokens for c in await salted.generate(pair)] == [0, 0, 0]


async def test_answers_stop_at_their_length_and_at_stop_strings() -> None:
    engine = ScriptedEngine("one two three. four")
    short, stopped, whole = await engine.generate(
        [ask("q", max_tokens=2), ask("q", stop=(".",)), ask("q")]
    )
    assert (short.text, short.finish, short.usage.decoded_tokens) == ("one two", "length", 2)
    assert (stopped.text, stopped.finish) == ("one two three", "stop")
    assert (whole.text, len(whole.tokens)) == ("one two three. four", 4)


async def test_a_choice_grammar_is_kept_unless_the_model_cannot() -> None:
    grammar = Grammar("choice", ("red", "green"))
    request = Request((Message("user", "?"),), Sampling(seed=3), grammar)
    assert (await texts(ScriptedEngine("I take green"), request)) == ["green"]
    drawn = await texts(ScriptedEngine("no idea"), request)
    assert drawn[0] in ("red", "green")
    assert drawn == await texts(ScriptedEngine("no idea"), request)
    assert await texts(ScriptedEngine("no idea", grammar=False), request) == ["no idea"]


async def test_a_request_fails_alone_and_an_engine_fails_its_group() -> None:
    engine = ScriptedEngine("x", failures={1: "too hot", 3: EngineError("gone")})
    good, bad, fine = await engine.generate([ask("a"), ask("b"), ask("c")])
    assert (good.text, fine.text, bad.finish, bad.error) == ("x", "x", "error", "too hot")
    with pytest.raises(EngineError, match="gone"):
        await engine.generate([ask("d"), ask("e")])
    assert await texts(engine, ask("f")) == ["x"]


async def test_a_prompt_beyond_the_context_fails_alone() -> None:
    engine = ScriptedEngine("x", context_tokens=6)
    fits, long = await engine.generate([ask("a b c", max_tokens=2), ask("a b c d e", max_tokens=2)])
    assert fits.error is None
    assert "exceed the context" in (long.error or "")


async def test_streamed_pieces_are_the_text_and_requests_take_turns() -> None:
    deltas: list[Delta] = []
    engine = ScriptedEngine(["one  two\nthree", "vier"])
    completions = await engine.generate([ask("a"), ask("b")], deltas.append)
    for index, completion in enumerate(completions):
        assert "".join(d.text for d in deltas if d.index == index) == completion.text
    assert [d.index for d in deltas] == [0, 1, 0, 0]


async def test_cancelling_the_caller_cancels_the_answer() -> None:
    task = asyncio.create_task(ScriptedEngine("a b c", delay=10).generate([ask("q")]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_scores_and_embeddings_depend_on_the_texts_alone() -> None:
    engine = ScriptedEngine()
    prefix = (Segment("the sky is"),)
    blue, again = await engine.score(prefix, ["very blue", "very blue"])
    assert blue == again
    assert len(blue.token_logprobs) == 2
    assert blue.logprob == sum(blue.token_logprobs) <= 0
    vectors = await engine.embed(["red green", "green red", "something else entirely", ""])
    assert vectors.shape == (4, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert vectors[0] @ vectors[1] == pytest.approx(1)
    assert vectors[0] @ vectors[2] < 0.9


async def test_counting_matches_usage_and_a_closed_engine_refuses() -> None:
    engine = ScriptedEngine("x")
    request = ask("a b c")
    (completion,) = await engine.generate([request])
    assert engine.count_tokens(request.prompt) == completion.usage.prompt_tokens == 4
    assert engine.count_tokens((Segment("a b"), Segment(tokens=(5, 6)))) == 4
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await engine.generate([request])
