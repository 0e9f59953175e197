"""What the planner sends to an endpoint: order, once for all who ask, within budgets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from fake_endpoint import Responder, delta, fake_endpoint, finish, send, stream, usage
from hypothesis import given, settings
from hypothesis import strategies as st

from patience import until
from shoal.core.budget import Budget, Limits
from shoal.core.errors import EngineError, RemoteError
from shoal.core.protocols import Delta, Grammar, Request, Sampling, Segment
from shoal.core.records import Message, ToolSpec
from shoal.engine.remote import RemoteEngine
from shoal.engine.upstream import UpstreamEngine
from shoal.engine.upstream_format import same_key, slots_of, stable_tools, text_of

DOCUMENTS = [f"Document {d}: " + f"it is about {d}. " * 40 for d in range(4)]


def ask(text: str, **sampling: Any) -> Request:
    return Request((Segment(text),), Sampling(**{"max_tokens": 4, **sampling}))


def questions(documents: Sequence[str], count: int) -> list[Request]:
    """Questions about each document, the documents in turn."""
    return [ask(f"{text}Question {q}?") for q in range(count) for text in documents]


class Endpoint:
    """Answers every completion after a pause and notes when each began and ended."""

    def __init__(self, seconds: float = 0.02, cached: int = 3) -> None:
        self.log: list[tuple[str, str]] = []
        self.most = 0
        self._open = 0
        self._seconds = seconds
        self._cached = cached

    @property
    def prompts(self) -> list[str]:
        return [prompt for what, prompt in self.log if what == "begin"]

    def responder(self) -> Responder:
        async def respond(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
            prompt = body.get("prompt") or body["messages"][-1]["content"]
            self.log.append(("begin", prompt))
            self._open += 1
            self.most = max(self.most, self._open)
            await asyncio.sleep(self._seconds)
            text = f"re {prompt[-3:]}"
            self.log.append(("end", prompt))
            self._open -= 1
            pieces = [{"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}]
            await stream(*pieces, usage(10, self._cached, 2))(body, writer)

        return respond


def upstream(url: str, **options: Any) -> UpstreamEngine:
    return UpstreamEngine(RemoteEngine(url, "m", key="k", retries=0), **options)


async def test_one_of_each_group_goes_first_and_the_rest_follow_group_by_group() -> None:
    endpoint = Endpoint()
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url, concurrency=4)
        group = questions(DOCUMENTS, 4)
        answers = await engine.generate(group)
        await engine.close()
    assert [a.text for a in answers] == [f"re {r.prompt[0].text[-3:]}" for r in group]  # type: ignore[union-attr]
    about = [prompt[:10] for prompt in endpoint.prompts]
    assert len(set(about[:4])) == 4
    rest = about[4:]
    assert rest == sorted(rest, key=rest.index)
    for first, text in enumerate(endpoint.prompts[:4]):
        followers = [("begin", p) for p in endpoint.prompts[4:] if p[:10] == text[:10]]
        ended = endpoint.log.index(("end", text))
        assert all(endpoint.log.index(follower) > ended for follower in followers), first
    assert engine.counters.ahead == 4
    assert engine.counters.sent == 16
    assert (engine.counters.prompt_tokens, engine.counters.cached_tokens) == (160, 48)


async def test_slots_get_one_request_of_a_group_at_a_time() -> None:
    endpoint = Endpoint()
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url, concurrency=16, slots=2)
        await engine.generate(questions(DOCUMENTS, 3))
        await engine.close()
    assert endpoint.most == 2
    open_: list[str] = []
    for what, prompt in endpoint.log:
        if what == "end":
            open_.remove(prompt[:10])
        else:
            assert prompt[:10] not in open_
            open_.append(prompt[:10])
    about = [prompt[:10] for prompt in endpoint.prompts]
    assert set(about[:6]) == set(about[:2])  # two groups run to their end before others begin


async def test_what_shares_nothing_is_sent_at_once() -> None:
    endpoint = Endpoint()
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url, concurrency=8)
        await engine.generate([ask(f"{n} alone") for n in range(8)])
        await engine.close()
    assert endpoint.most == 8
    assert engine.counters.ahead == 0


async def test_exact_duplicates_are_answered_once() -> None:
    endpoint = Endpoint()
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url)
        same = [ask("one"), ask("one", seed=5), ask("one", temperature=1.0, seed=5)]
        same += [ask("one", temperature=1.0, seed=5), ask("one", temperature=1.0, seed=6)]
        heard: list[Delta] = []
        answers = await engine.generate(same, on_delta=heard.append)
        await engine.close()
    assert len(endpoint.prompts) == 3
    assert {answer.text for answer in answers} == {"re one"}
    assert [answer.usage.shared_tokens for answer in answers] == [3, 10, 3, 10, 3]
    assert sorted(delta.index for delta in heard) == [0, 1, 2, 3, 4]
    assert engine.counters.deduplicated == 2


async def test_answers_are_remembered_where_asked() -> None:
    endpoint = Endpoint()
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url, remember=2)
        for text in ("a a", "b b", "a a", "c c", "b b", "a a"):
            (answer,) = await engine.generate([ask(text)])
            assert answer.text == f"re {text}"
        await engine.close()
    assert endpoint.prompts == ["a a", "b b", "c c", "a a"]


async def test_salts_share_neither_answers_nor_turns() -> None:
    endpoint = Endpoint()
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url)
        prompt = (Segment(DOCUMENTS[0]),)
        await engine.generate([Request(prompt, salt="a"), Request(prompt, salt="b")])
        await engine.close()
    assert endpoint.most == 2


async def test_tenants_take_turns() -> None:
    endpoint = Endpoint()
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url, concurrency=2)
        many = [Request((Segment(f"m{n}"),), salt="many") for n in range(8)]
        one = [Request((Segment("one"),), salt="one")]
        await asyncio.gather(engine.generate(many), engine.generate(one))
        await engine.close()
    assert "one" in endpoint.prompts[:2]


async def test_a_budget_that_is_used_up_fails_its_own_requests_alone() -> None:
    endpoint = Endpoint()
    poor = Budget(Limits(calls=2), name="poor")
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url, budget_of=lambda r: poor if r.salt == "poor" else None)
        mine = [Request((Segment(f"p{n}"),), salt="poor") for n in range(4)]
        others = [Request((Segment(f"r{n}"),), salt="rich") for n in range(4)]
        answers = await engine.generate([*mine, *others])
        await engine.close()
    assert [answer.finish for answer in answers] == ["stop"] * 2 + ["budget"] * 2 + ["stop"] * 4
    assert "'poor' has 0 calls left" in (answers[2].error or "")
    assert poor.used_tokens == 2 * 12


async def test_a_leader_that_fails_lets_its_group_go_on() -> None:
    endpoint = Endpoint()
    broken = send(400, {"error": {"message": "No."}})
    async with fake_endpoint(broken, endpoint.responder()) as fake:
        engine = upstream(fake.url)
        answers = await engine.generate(questions(DOCUMENTS[:1], 4))
        await engine.close()
    assert sorted(answer.finish for answer in answers) == ["error", "stop", "stop", "stop"]


async def test_an_endpoint_that_is_down_is_an_error() -> None:
    async with fake_endpoint(send(503, {})) as fake:
        engine = upstream(fake.url)
        with pytest.raises(RemoteError, match="503"):
            await engine.generate(questions(DOCUMENTS, 2))
        await engine.close()


async def test_an_answer_that_breaks_off_is_asked_for_again_where_nobody_listens() -> None:
    cut = stream({"choices": [{"index": 0, "text": "half"}]}, None)
    whole = stream({"choices": [{"index": 0, "text": "whole", "finish_reason": "stop"}]}, usage())
    async with fake_endpoint(cut, whole) as fake:
        engine = upstream(fake.url)
        (answer,) = await engine.generate([ask("x")])
        await engine.close()
    assert answer.text == "whole"
    assert engine.counters.retried == 1


async def test_cancelling_all_who_wait_cancels_the_request() -> None:
    endpoint = Endpoint(seconds=30)
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url, concurrency=1)
        tasks = [asyncio.create_task(engine.generate([ask("same")])) for _ in range(2)]
        queued = asyncio.create_task(engine.generate([ask("other")]))
        assert await until(lambda: endpoint.prompts)
        tasks[0].cancel()
        queued.cancel()
        await asyncio.sleep(0.05)
        assert fake.closed == 0
        tasks[1].cancel()
        await asyncio.gather(*tasks, queued, return_exceptions=True)
        assert await until(lambda: fake.closed == 1)
        assert engine.load.running == engine.load.waiting == 0
        await engine.close()


async def test_late_listeners_hear_all_of_an_answer() -> None:
    pieces = ["one ", 0.1, "two ", 0.1, "three", finish(), usage()]
    chat = Request((Message("user", "count"),))
    async with fake_endpoint(stream(*pieces)) as fake:
        engine = upstream(fake.url)
        heard: dict[int, str] = {0: "", 1: ""}

        def hearing(who: int) -> Any:
            def hear(piece: Delta) -> None:
                heard[who] += piece.text

            return hear

        first = asyncio.create_task(engine.generate([chat], hearing(0)))
        assert await until(lambda: heard[0])
        await engine.generate([chat], hearing(1))
        await first
        await engine.close()
    assert heard == {0: "one two three", 1: "one two three"}
    assert len(fake.seen) == 1


async def test_a_closed_engine_says_so() -> None:
    async with fake_endpoint(send(503, {})) as fake:
        engine = upstream(fake.url)
        await engine.close()
        with pytest.raises(EngineError, match="closed"):
            await engine.generate([ask("x")])


async def test_tools_reach_the_endpoint_in_one_order() -> None:
    bodies = []
    tools = (
        ToolSpec("b", "Second.", {"type": "object", "properties": {"y": {}, "x": {}}}),
        ToolSpec("a", "First."),
    )
    answered = stream(delta("ok"), finish(), usage())
    async with fake_endpoint(answered) as fake:
        engine = upstream(fake.url)
        for order in (tools, tools[::-1]):
            await engine.generate([Request((Message("user", "hi"),), tools=order)])
        await engine.close()
        bodies = [json.dumps(body["tools"]) for body in fake.bodies]
    assert bodies[0] == bodies[1]
    assert bodies[0].index('"a"') < bodies[0].index('"b"')
    assert stable_tools(stable_tools(tools)) == stable_tools(tools)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=24),
    st.integers(1, 5),
    st.booleans(),
)
@settings(max_examples=30)
def test_everything_that_is_asked_is_answered(
    asked: list[tuple[int, int]], concurrency: int, slotted: bool
) -> None:
    async def main() -> None:
        endpoint = Endpoint(seconds=0)
        async with fake_endpoint(endpoint.responder()) as fake:
            slots = concurrency if slotted else None
            engine = upstream(fake.url, concurrency=concurrency, slots=slots)
            tasks = [
                asyncio.create_task(engine.generate([ask(f"{DOCUMENTS[d]}{q:03}")]))
                for d, q in asked
            ]
            answers = await asyncio.gather(*tasks)
            assert [answer[0].text for answer in answers] == [f"re {q:03}" for _, q in asked]
            assert len(endpoint.prompts) == len(set(asked))
            await engine.close()

    asyncio.run(main())


def test_keys_tell_apart_what_is_answered_differently() -> None:
    base = ask("x", temperature=1.0, seed=1)
    others = [
        ask("y", temperature=1.0, seed=1),
        ask("x", temperature=1.0, seed=2),
        ask("x", temperature=1.0, seed=1, max_tokens=5),
        Request(base.prompt, base.sampling, Grammar("choice", ("a",))),
        Request(base.prompt, base.sampling, tools=(ToolSpec("t", "T."),)),
        Request(base.prompt, base.sampling, salt="s"),
        Request(base.prompt, base.sampling, adapter="a"),
    ]
    assert len({same_key(request) for request in (base, *others)}) == 8
    assert same_key(base) == same_key(ask("x", temperature=1.0, seed=1))
    assert text_of(base) != text_of(others[4])


async def test_small_words_in_common_make_no_groups_within_a_group() -> None:
    endpoint = Endpoint()
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url, slots=4)
        words = ("What is?", "What was?", "Who is?", "Who was?")
        await engine.generate([ask(DOCUMENTS[0] + word) for word in words])
        await engine.close()
    assert endpoint.most == 1


async def test_nested_prefixes_are_waited_for_one_after_the_other() -> None:
    endpoint = Endpoint()
    system = "You are a careful reader. " * 20
    async with fake_endpoint(endpoint.responder()) as fake:
        engine = upstream(fake.url)
        await engine.generate(questions([system + text for text in DOCUMENTS], 2))
        await engine.close()
    ended = endpoint.log.index(("end", endpoint.prompts[0]))
    assert ended == 1  # the system prompt, then one of each other document
    assert engine.counters.ahead == 4


@pytest.mark.parametrize(
    ("props", "slots"),
    [
        ({"total_slots": 8}, 8),
        ({"total_slots": 0}, None),
        ({}, None),
        ([], None),
        (b"<html>", None),
    ],
)
async def test_llama_cpp_says_how_many_slots_it_has(props: Any, slots: int | None) -> None:
    async with fake_endpoint(send(200, props)) as fake:
        assert await asyncio.to_thread(slots_of, fake.url + "/v1") == slots
        assert fake.seen[0][0] == "/props"
    assert await asyncio.to_thread(slots_of, fake.url) is None
