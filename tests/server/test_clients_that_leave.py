"""What clients leave behind that go away: nothing, and nobody else notices."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from live_server import asked, running

from patience import wait_until
from shoal.engine.local import LocalEngine

Start = Callable[..., str]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[tuple[str, LocalEngine]]:
    engine = LocalEngine.open(str(tiny_model), dtype="fp32", kv_bytes=4 << 20)
    with running(engine) as url:
        yield url, engine


def chat(text: str, **fields: object) -> dict:
    return {"model": "small", "messages": [{"role": "user", "content": text}], **fields}


def comes_to_rest(engine: LocalEngine) -> bool:
    """Whether nothing runs soon, and no block of the cache is held for anybody."""
    return wait_until(
        lambda: engine.load.running == engine.load.waiting == engine.load.pinned_bytes == 0
    )


@pytest.mark.parametrize("stream", [False, True])
def test_blocks_are_freed_when_a_client_goes(tiny: tuple[str, LocalEngine], stream: bool) -> None:
    url, engine = tiny
    body = chat("Tell me " * 20, max_tokens=1500, ignore_eos=True, stream=stream, n=3)
    before = engine.counters.tokens_generated
    with asked(f"{url}/chat/completions", body):
        assert wait_until(lambda: engine.counters.tokens_generated > before)
    decoded = engine.counters.tokens_generated
    assert comes_to_rest(engine)
    assert engine.counters.tokens_generated - decoded < 1500  # not written to the end for nobody


async def test_many_streams_at_once(tiny: tuple[str, LocalEngine]) -> None:
    url, engine = tiny
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:

        async def one(number: int) -> None:
            body = chat(f"Story {number}", stream=True, max_tokens=24, ignore_eos=True)
            async with client.stream("POST", f"{url}/chat/completions", json=body) as got:
                lines = [line async for line in got.aiter_lines() if line]
            assert got.status_code == 200 and lines[-1] == "data: [DONE]"
            assert not any('"error"' in line for line in lines)

        await asyncio.gather(*map(one, range(64)))
    assert comes_to_rest(engine)


async def test_clients_that_come_and_go_at_random(tiny: tuple[str, LocalEngine]) -> None:
    url, engine = tiny
    draw = random.Random(5)
    statuses: list[int] = []
    async with httpx.AsyncClient(timeout=60) as client:

        async def one(number: int) -> None:
            size = draw.choice([1, 20, 200])
            fields = {"max_tokens": size, "ignore_eos": True, "n": draw.randint(1, 3)}
            if draw.random() < 0.5:
                path, body = "responses", {"model": "small", "input": f"{number} " * 30}
                body |= {"max_output_tokens": size, "stream": draw.random() < 0.5}
            else:
                path, body = "chat/completions", chat(f"{number} " * 30, **fields)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(draw.expovariate(1 / 0.3)):
                    statuses.append((await client.post(f"{url}/{path}", json=body)).status_code)

        await asyncio.gather(*map(one, range(40)))
    assert set(statuses) <= {200}
    assert comes_to_rest(engine)
