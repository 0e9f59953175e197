"""Order by hit rate: what is cached first, nobody starved, no tenant ahead of its share."""

from __future__ import annotations

import pytest
from dry_run import DryRun
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import ConfigError
from shoal.engine.generation import Generation, Job
from shoal.engine.kvshare.order import ADMITTED, HitRateOrder, PreparedOrder, Reach
from shoal.engine.outlook import Growth
from shoal.engine.tree import PrefixTree


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Known:
    """A finder of given hits: prompts begin with how many of their tokens are cached."""

    def reach(self, job: Job, tree: PrefixTree) -> Reach:
        assert isinstance(job, Generation)
        return Reach(job.tokens[0], bytes([job.tokens[1]]))

    def prepare(self, job: Job, tree: PrefixTree) -> None: ...
    def placed(self, job: Job) -> None: ...
    def ended(self, job: Job) -> None: ...


def prompt(cached: int, segment: int = 0, length: int = 10) -> list[int]:
    return [cached, segment, *range(100, 98 + length)]


def dry(clock: Clock, capacity: int = 12, **settings: float) -> DryRun:
    """One prompt of ten tokens at a time."""
    return DryRun(capacity, policy=HitRateOrder(Known(), clock=clock, **settings))  # type: ignore[arg-type]


def test_what_is_mostly_cached_comes_first() -> None:
    run = dry(Clock())
    jobs = [run.job(prompt(cached)) for cached in (1, 9, 5)]
    run.submit(jobs)
    run.run()
    assert run.started == [jobs[i].request.id for i in (1, 2, 0)]


def test_while_prompts_are_on_their_way_nothing_else_is_chosen() -> None:
    """With room for all of them, so that what comes later and is cached still overtakes."""
    run = dry(Clock(), capacity=10_000)
    long = [run.job(prompt(1, length=ADMITTED)) for _ in range(2)]
    run.submit(long)
    run.step()
    cached = run.job(prompt(9))
    run.submit([cached])
    run.run()
    assert run.started == [long[0].request.id, cached.request.id, long[1].request.id]


def test_a_request_is_overtaken_only_by_those_that_come_within_slo_over_ageing() -> None:
    clock = Clock()
    run = dry(clock, slo=2.0, ageing=0.5, slack=float("inf"))
    cold = run.job(prompt(0, 1))
    run.submit([cold, run.job(prompt(9, 2))])
    waited = 0
    while cold.request.id not in run.started:
        clock.now += 0.25
        waited += 1
        run.submit([run.job(prompt(9, 2), answer=1)])
        run.step()
    # 0.9 cached and 0.05 for the same segment are 3.8 seconds of waiting
    assert 3.5 <= waited * 0.25 <= 4.5


def test_without_ageing_it_is_starved() -> None:
    clock = Clock()
    run = dry(clock, ageing=0.0, slack=float("inf"))
    cold = run.job(prompt(0))
    run.submit([cold])
    run.submit([run.job(prompt(9))])
    for _ in range(500):
        clock.now += 0.25
        run.submit([run.job(prompt(9))])
        run.step()
    assert cold.request.id not in run.started


def test_a_tenant_that_resembles_the_cache_leaves_others_their_share() -> None:
    clock = Clock()
    run = dry(clock, ageing=0.0, slack=40)
    warm = [run.job(prompt(5, 1), salt="warm") for _ in range(60)]
    cold = [run.job(prompt(0, 2), salt="cold") for _ in range(30)]
    run.submit(warm)
    run.submit(cold)
    served = {"warm": 0, "cold": 0}
    while len(run.started) < 60:
        before = len(run.started)
        run.step()
        for id in run.started[before:]:
            job = next(job for job in warm + cold if job.request.id == id)
            served[job.request.salt] += 10 - job.tokens[0] + 1
            assert served["warm"] - served["cold"] <= 40 + 11


def test_a_heavier_tenant_gets_more() -> None:
    policy = HitRateOrder(
        Known(), ageing=0.0, slack=20, weight=lambda tenant: 3.0 if tenant == "big" else 1.0
    )
    run = DryRun(12, policy=policy)
    jobs = [run.job(prompt(0), salt=salt) for salt in ("big", "small") * 40]
    run.submit(jobs)
    while len(run.started) < 40:
        run.step()
    salts = {job.request.id: job.request.salt for job in jobs}
    big = sum(salts[id] == "big" for id in run.started)
    assert 28 <= big <= 32


def test_silence_earns_no_credit() -> None:
    run = dry(Clock(), ageing=0.0, slack=0)
    busy = [run.job(prompt(0), salt="busy") for _ in range(50)]
    run.submit(busy)
    for _ in range(20):
        run.step()
    late = [run.job(prompt(0), salt="late") for _ in range(10)]
    done = len(run.started)
    run.submit(late)
    while len(run.started) < done + 6:
        run.step()
    names = {job.request.id for job in late}
    assert sum(id in names for id in run.started[done:]) in (3, 4)


def test_requests_for_the_segment_read_last_come_together() -> None:
    run = dry(Clock())
    jobs = [run.job(prompt(5, segment)) for segment in (1, 2, 1, 2, 1)]
    run.submit(jobs)
    run.run()
    read = [next(j.tokens[1] for j in jobs if j.request.id == id) for id in run.started]
    assert read == [1, 1, 1, 2, 2]


def test_who_lost_memory_comes_first() -> None:
    policy = HitRateOrder(Known())
    run = DryRun(60, policy=policy)
    jobs = [run.job(prompt(n, n), answer=40, limit=41) for n in (9, 8)]
    policy.growth = lambda job: Growth(1, False)  # type: ignore[method-assign]  # they collide
    run.submit(jobs)
    run.run()
    assert run.scheduler.preemptions
    assert len(run.ended) == 2


JOBS = st.lists(
    st.tuples(
        st.integers(0, 9), st.sampled_from(["a", "b", "c"]), st.integers(1, 5), st.integers(0, 30)
    ),
    min_size=1,
    max_size=25,
)


@given(JOBS, st.integers(16, 60), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0, 30, 4096]))
@settings(max_examples=150)
def test_every_job_ends_and_leaves_nothing(
    jobs: list[tuple[int, str, int, int]], capacity: int, ageing: float, slack: int
) -> None:
    clock = Clock()
    run = dry(clock, capacity, ageing=ageing, slack=slack)
    made = [
        (come, run.job(prompt(cached, cached), answer=answer, limit=6, salt=salt))
        for cached, salt, answer, come in jobs
    ]
    for step in range(31):
        clock.now += 0.1
        run.submit([job for come, job in made if come == step])
        if run.scheduler.busy:
            run.step()
    run.run()
    assert sorted(run.ended) == sorted(job.request.id for _, job in made)
    assert run.scheduler.tree.pinned == 0


@given(JOBS, st.integers(0, 9))
@settings(max_examples=60)
def test_nobody_starves_however_warm_the_others_are(
    jobs: list[tuple[int, str, int, int]], cached: int
) -> None:
    """Against a stream of fully cached requests of all tenants that never ends."""
    clock = Clock()
    run = dry(clock, 20, slo=2.0, ageing=0.5, slack=100)
    made = [run.job(prompt(hits, hits), salt=salt) for hits, salt, _, _ in jobs]
    run.submit(made)
    left = {job.request.id for job in made}
    for _ in range(600):
        clock.now += 0.1
        run.submit([run.job(prompt(9, 1), salt=salt) for salt in "abc"])
        run.step()
        left -= set(run.started)
        if not left:
            return
    raise AssertionError(f"{len(left)} of {len(made)} were starved for a minute")


def test_arrival_order_prepares_whom_it_admits() -> None:
    prepared: list[Job] = []

    class Noting(Known):
        def prepare(self, job: Job, tree: PrefixTree) -> None:
            prepared.append(job)

    run = DryRun(100, policy=PreparedOrder(Noting()))
    jobs = [run.job(prompt(n, n)) for n in (1, 9, 3)]
    run.submit(jobs)
    run.run()
    assert list(dict.fromkeys(prepared)) == jobs


@pytest.mark.parametrize("wrong", [{"ageing": -1.0}, {"slo": 0.0}, {"slack": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="Hit-rate order"):
        HitRateOrder(**wrong)  # type: ignore[arg-type]
