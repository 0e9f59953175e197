import asyncio
import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.server.admission import Gate
from shoal.server.errors import ApiError
from shoal.server.tenants import Tenant

ANN, BOB = Tenant("ann"), Tenant("bob", max_running=1, max_waiting=1)


def gate(running: int = 1, waiting: int = 8, seconds: float = 30.0) -> Gate:
    return Gate(max_running=running, max_waiting=waiting, seconds=seconds)


async def hold(gate: Gate, tenant: Tenant, until: asyncio.Event, log: list[str]) -> None:
    async with gate.place(tenant):
        log.append(tenant.name)
        await until.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_has_fewest_running_is_next() -> None:
    at, log, until = gate(running=2), [], [asyncio.Event() for _ in range(5)]
    order = [ANN, ANN, ANN, BOB, ANN]
    tasks = [asyncio.create_task(hold(at, *pair, log)) for pair in zip(order, until, strict=True)]
    await settle()
    assert log == ["ann", "ann"] and (at.running, at.waiting) == (2, 3)
    assert at.count("ann") == (2, 2) and at.count("bob") == (0, 1)
    until[0].set()
    await settle()
    assert log[2:] == ["bob"]  # behind ann's third request, but bob has none running
    for one in until:
        one.set()
    await asyncio.gather(*tasks)
    assert log[3:] == ["ann", "ann"] and (at.running, at.waiting) == (0, 0)


async def test_too_many_waiting_are_sent_away_with_a_time() -> None:
    at, log, until = gate(waiting=2), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(at, ANN, until, log)) for _ in range(3)]
    await settle()
    with pytest.raises(ApiError, match="The server has too many requests waiting") as caught:
        await hold(at, BOB, until, log)
    assert caught.value.status == 429 and int(caught.value.headers["Retry-After"]) >= 1
    until.set()
    await asyncio.gather(*tasks)


async def test_a_tenant_has_limits_of_its_own() -> None:
    at, log, until = gate(running=8), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(at, BOB, until, log)) for _ in range(2)]
    await settle()
    assert log == ["bob"] and at.count("bob") == (1, 1)
    with pytest.raises(ApiError, match="This key has too many"):
        await hold(at, BOB, until, log)
    tasks.append(asyncio.create_task(hold(at, ANN, until, log)))
    await settle()
    assert log == ["bob", "ann"]
    until.set()
    await asyncio.gather(*tasks)


async def test_work_that_takes_too_long_ends() -> None:
    with pytest.raises(ApiError, match=r"longer than 0.01 s") as caught:
        async with gate(seconds=0.01).place(ANN):
            await asyncio.sleep(5)
    assert caught.value.status == 408


async def test_draining_lets_the_queue_end_and_nobody_in() -> None:
    at, log, until = gate(), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(at, ANN, until, log)) for _ in range(2)]
    await settle()
    at.drain()
    with pytest.raises(ApiError, match="is stopping") as caught:
        await hold(at, BOB, until, log)
    assert caught.value.status == 503 and caught.value.headers["Retry-After"]
    until.set()
    await asyncio.gather(*tasks)
    assert log == ["ann", "ann"]


async def test_what_does_not_end_is_handed_back() -> None:
    at, log, until = gate(), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(at, ANN, until, log)) for _ in range(2)]
    await settle()
    at.hand_back()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [end.status for end in ends if isinstance(end, ApiError)] == [503, 503]
    assert log == ["ann"] and (at.running, at.waiting) == (0, 0)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 6))
def test_places_are_never_lost(seed: int, running: int, waiting: int) -> None:
    """Whatever comes, ends or gives up: limits hold, and at the end every place is free."""
    draw = random.Random(seed)
    tenants = [Tenant("a"), Tenant("b", max_running=1), Tenant("c", max_running=2, max_waiting=1)]

    async def run() -> None:
        at = gate(running, waiting)

        async def one(tenant: Tenant) -> None:
            async with at.place(tenant):
                assert at.running <= running
                mine = at.count(tenant.name)[0]
                assert tenant.max_running is None or mine <= tenant.max_running
                for _ in range(draw.randrange(4)):
                    await asyncio.sleep(0)

        tasks: list[asyncio.Task[None]] = []
        for _ in range(40):
            tasks.append(asyncio.create_task(one(draw.choice(tenants))))
            if draw.random() < 0.3:
                draw.choice(tasks).cancel()
            if draw.random() < 0.5:
                await asyncio.sleep(0)
            assert at.waiting <= waiting
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert (at.running, at.waiting) == (0, 0)
        for end in ends:
            assert end is None or isinstance(end, asyncio.CancelledError | ApiError)
        async with asyncio.timeout(1), at.place(tenants[0]):
            pass

    asyncio.run(run())


async def test_a_waiting_request_that_is_cancelled_leaves_the_queue() -> None:
    at, log, until = gate(), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(at, ANN, until, log)) for _ in range(3)]
    await settle()
    tasks[1].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[1]
    assert (at.running, at.waiting) == (1, 1)
    until.set()
    await asyncio.gather(tasks[0], tasks[2])
    assert log == ["ann", "ann"]
