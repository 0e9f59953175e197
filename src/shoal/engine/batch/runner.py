"""Running a job: a local engine gets a plan and runs by it, any other engine gets all that is open.

Tokens are encoded once, announced to the engine's policy, and fed in planned order, so that a job
of any size holds few requests at a time. Results are handed on as they come. Interrupted jobs go
on with what is left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import ConfigError, EngineError, InputError, RemoteError, ShoalError
from shoal.core.protocols import Engine, Request, Segment
from shoal.core.records import Usage
from shoal.engine.batch.jobs import Asked, Response, Scored, Task
from shoal.engine.batch.order import Order
from shoal.engine.batch.plan import Level, Plan, plan
from shoal.engine.batch.planned import Item, Planned, Span
from shoal.engine.batch.prefixes import saving
from shoal.engine.compute import compute
from shoal.engine.lengths import kind_of
from shoal.engine.local import LocalEngine
from shoal.engine.policies import Policy
from shoal.engine.scheduler import Meter
from shoal.engine.tree import PrefixTree
from shoal.engine.upstream import UpstreamEngine

LOCAL_WINDOW = 512
"""Lines under way at a time in a local engine; memory of requests, not of cache, bounds it."""
SHARED_WINDOW = 32
"""Lines under way where an engine serves others beside the job."""
REMOTE_WINDOW = 4096
"""Lines that an engine which plans by itself gets to see at a time."""
GIVE_UP = 8
"""Lines in a row that an endpoint may leave unanswered before the run stops."""
_CHUNK = 64

Tokens = NDArray[np.int32]
OnResult = Callable[[int, Response], None]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What running a job took. Prefill tokens are those that went through the model.

    prompt_tokens     tokens of all prompts, as asked for
    prefill_tokens    computed for the first time, counted by the engine
    repeated_tokens   computed again after memory ran out
    step_rows         how many forward passes had how many rows
    """

    lines: int
    failed: int
    prompt_tokens: int
    prefill_tokens: int
    decoded_tokens: int
    seconds: float
    repeated_tokens: int = 0
    planner_seconds: float = 0.0
    kv_high_water: int = 0
    steps: int = 0
    step_rows: dict[int, int] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    preemptions: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def saving(self) -> float:
        """Percent of prompt tokens that were not computed."""
        return saving(self.prefill_tokens, self.prompt_tokens)

    @property
    def rows_per_step(self) -> float:
        """Tokens of a forward pass on average."""
        return sum(rows * n for rows, n in self.step_rows.items()) / max(1, self.steps)


@dataclass(slots=True)
class Prepared:
    """A job with its tokens. Prompts of all lines follow each other; some lines have none.

    owner     the line of each prompt
    requests  the request of each prompt; None where texts are scored
    failures  lines that cannot be encoded, with the error
    """

    tasks: Sequence[Task]
    prompts: list[Tokens] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    requests: list[Request | None] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    failures: dict[int, ShoalError] = field(default_factory=dict)

    def plan(self, *, level: Level = "multi", order: Order = "ratio", engine: LocalEngine) -> Plan:
        """The plan of all prompts that can run."""
        load, rows = engine.load, engine.scheduler.rows
        capacity = load.capacity_bytes // engine.token_bytes
        return plan(
            self.prompts,
            self.answers,
            scopes=self.scopes,
            level=level,
            order=order,
            capacity=capacity,
            rows=rows,
        )

    def key(self, place: int) -> str:
        """What the engine's policy knows a prompt by."""
        request = self.requests[place]
        return f"scores {place}" if request is None else request.id

    def take(self, index: int, task: Task, engine: LocalEngine) -> None:
        """Encode the prompts of a line. What no engine can answer is left to it to refuse."""
        work = task.work
        room = min(
            engine.info.context_tokens or 0, engine.load.capacity_bytes // engine.token_bytes
        )
        if isinstance(work, Scored):
            tokens = engine.encode(work.prefix, work.salt)[:-1]
            if 0 < len(tokens) < room:
                self._add(index, tokens, work.salt, 0, None)
            return
        encoded = [
            engine.encode(request.prompt, request.salt, tools=request.tools)
            for request in work.requests
        ]
        for request, tokens in zip(work.requests, encoded, strict=True):
            if 0 < len(tokens) < room:
                answer = min(request.sampling.max_tokens, room - len(tokens))
                scope = f"{request.salt}/{request.adapter}" if request.adapter else request.salt
                self._add(index, tokens, scope, answer, request)

    def _add(
        self, index: int, tokens: Sequence[int], scope: str, answer: int, request: Request | None
    ) -> None:
        self.prompts.append(np.asarray(tokens, dtype=np.int32))
        self.owner.append(index)
        self.requests.append(request)
        self.scopes.append(scope)
        self.answers.append(answer)


async def prepare(
    tasks: Sequence[Task],
    engine: LocalEngine,
    *,
    skip: frozenset[int] = frozenset(),
    on_progress: OnProgress = lambda what, done, total: None,
) -> Prepared:
    """Encode every prompt once, beside the event loop."""
    found = Prepared(tasks)

    def encode(indices: range) -> None:
        for index in indices:
            if index not in skip:
                try:
                    found.take(index, tasks[index], engine)
                except ShoalError as error:
                    found.failures[index] = error

    for first in range(0, len(tasks), _CHUNK):
        on_progress("encoding prompts", first, len(tasks))
        await asyncio.to_thread(encode, range(first, min(first + _CHUNK, len(tasks))))
    on_progress("encoding prompts", len(tasks), len(tasks))
    return found


class BatchRun:
    """One run of a job over an engine; ``on_result`` sees every line that ends, as it ends.

    exclusive  a local engine serves this job alone, by its plan; otherwise the job is one user
               of the engine among others, in planned order
    window     lines under way at a time
    skip       lines that have results already
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        engine: Engine,
        on_result: OnResult,
        *,
        skip: frozenset[int] = frozenset(),
        level: Level = "multi",
        order: Order = "ratio",
        exclusive: bool = True,
        window: int | None = None,
        on_progress: OnProgress = lambda what, done, total: None,
    ) -> None:
        self._tasks = tasks
        self._engine = engine
        self._on_result = on_result
        self._skip = skip
        self._level: Level = level
        self._order: Order = order
        self._exclusive = exclusive
        self._window = window
        self._on_progress = on_progress
        self._prepared: Prepared | None = None
        self._places: dict[int, list[int]] = {}  # line -> its prompts
        self._usage = Usage()
        self._scored_tokens = 0
        self._ended = 0
        self._failed = 0
        self._unanswered: list[RemoteError] = []
        self._in_a_row = 0

    async def run(self, prepared: Prepared | None = None) -> Report:
        """Answer every line that has no result yet.

        Raises :class:`EngineError` where the engine fails; results that came before are kept.
        """
        started = time.perf_counter()
        if isinstance(self._engine, LocalEngine):
            if prepared is None:
                prepared = await prepare(
                    self._tasks, self._engine, skip=self._skip, on_progress=self._on_progress
                )
            self._prepared = prepared
            for place, line in enumerate(prepared.owner):
                self._places.setdefault(line, []).append(place)
            run = self._run_planned if self._exclusive else self._run_beside
            report = await run(self._engine, prepared)
        else:
            await self._feed(range(len(self._tasks)), self._window or REMOTE_WINDOW)
            report = self._report(self._usage.prompt_tokens - self._usage.shared_tokens)
            if isinstance(self._engine, UpstreamEngine):
                report = replace(report, details=asdict(self._engine.counters))
        if self._unanswered:
            raise EngineError(
                f"{len(self._unanswered)} lines were not answered ({self._unanswered[0]}) "
                "Run the same command again for them."
            )
        return replace(report, seconds=time.perf_counter() - started)

    # -- ways to run ------------------------------------------------------------------------

    async def _run_planned(self, engine: LocalEngine, prepared: Prepared) -> Report:
        policy = Planned(level=self._level, order=self._order, clock=lambda: engine.counters.steps)
        async with scheduled_by(policy, engine) as (tree, meter):
            for place, tokens in enumerate(prepared.prompts):
                request, scope = prepared.requests[place], prepared.scopes[place]
                key = prepared.key(place)
                if request is None:
                    policy.announce_scores(key, tokens, scope)
                else:
                    answer = prepared.answers[place]
                    policy.announce([Item(key, tokens, scope, answer, kind_of(request))])
            planning = time.perf_counter()
            keys = await asyncio.wrap_future(compute.future(lambda: policy.planned_keys(tree)))
            planning = time.perf_counter() - planning
            place_of = {prepared.key(place): place for place in range(len(prepared.prompts))}

            def ended(line: int) -> None:
                """Nothing is kept for what the engine refused."""
                gone = [prepared.key(place) for place in self._places.get(line, ())]
                compute.submit(lambda: policy.withdraw(gone, tree))

            order = [prepared.owner[place_of[key]] for key in keys]
            await self._feed(order, self._window or LOCAL_WINDOW, ended)
        return replace(
            self._report(meter.prefill_tokens),
            repeated_tokens=meter.repeated_tokens,
            planner_seconds=planning,
            kv_high_water=meter.high_water * engine.token_bytes,
            steps=meter.steps.total(),
            step_rows=dict(sorted(meter.steps.items())),
            spans=tuple(policy.spans),
            preemptions=policy.preemptions,
        )

    async def _run_beside(self, engine: LocalEngine, prepared: Prepared) -> Report:
        """In planned order, while the engine goes on serving others by its own policy."""
        found = await asyncio.to_thread(
            lambda: prepared.plan(level=self._level, order=self._order, engine=engine)
        )
        order = [prepared.owner[place] for place in found.order_P.tolist()]
        await self._feed(order, self._window or SHARED_WINDOW)
        report = self._report(self._usage.prompt_tokens - self._usage.shared_tokens)
        return replace(report, planner_seconds=found.planner_seconds)

    async def _feed(
        self,
        order: Iterable[int],
        window: int,
        ended: Callable[[int], None] = lambda line: None,
    ) -> None:
        """Work on ``window`` lines at a time, in this order, then on those it does not name."""
        places = asyncio.Semaphore(window)

        async def work(line: int) -> None:
            try:
                await self._line(line)
            finally:
                ended(line)
                places.release()

        try:
            async with asyncio.TaskGroup() as group:
                named = dict.fromkeys(order) | dict.fromkeys(range(len(self._tasks)))
                for line in named:
                    if line not in self._skip:
                        await places.acquire()
                        group.create_task(work(line))
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors

    # -- one line ---------------------------------------------------------------------------

    async def _line(self, line: int) -> None:
        task = self._tasks[line]
        if self._prepared is not None and (error := self._prepared.failures.get(line)):
            self._end(line, task.failed(error))
            return
        try:
            response = await self._answered(line, task.work)
        except RemoteError as error:
            self._unanswered.append(error)
            self._in_a_row += 1
            if self._in_a_row >= GIVE_UP:
                raise
            return
        except (EngineError, ConfigError, InputError) as error:
            if not isinstance(task.work, Scored):
                raise
            response = task.failed(error)
        self._in_a_row = 0
        self._end(line, response)

    async def _answered(self, line: int, work: Asked | Scored) -> Response:
        if isinstance(work, Scored):
            scores = await self._engine.score(work.prefix, work.candidates, work.salt)
            prefix = self._engine.count_tokens(work.prefix)
            self._scored_tokens += sum(prefix + len(score.token_logprobs) for score in scores)
            return work.answer(scores)
        completions = await self._engine.generate(self._with_tokens(line, work.requests))
        for completion in completions:
            self._usage += completion.usage
        return work.answer(completions)

    def _with_tokens(self, line: int, requests: tuple[Request, ...]) -> Sequence[Request]:
        """The requests with the tokens that were encoded for the plan."""
        places = self._places.get(line, ())
        if self._prepared is None or len(places) != len(requests):
            return requests
        return [
            replace(request, prompt=(Segment(tokens=tuple(self._prepared.prompts[p].tolist())),))
            for request, p in zip(requests, places, strict=True)
        ]

    def _end(self, line: int, response: Response) -> None:
        self._ended += 1
        self._failed += response.status != 200
        self._on_result(line, response)
        self._on_progress("answering", len(self._skip) + self._ended, len(self._tasks))

    def _report(self, prefill: int) -> Report:
        return Report(
            lines=self._ended,
            failed=self._failed,
            prompt_tokens=self._usage.prompt_tokens + self._scored_tokens,
            prefill_tokens=prefill,
            decoded_tokens=self._usage.decoded_tokens,
            seconds=0.0,
        )


@asynccontextmanager
async def scheduled_by(
    policy: Planned, engine: LocalEngine
) -> AsyncIterator[tuple[PrefixTree, Meter]]:
    """Let a policy decide for a while, with a meter of its own."""
    scheduler = engine.scheduler

    def exchange(new: Policy, meter: Meter) -> tuple[Policy, Meter]:
        if scheduler.busy:
            raise EngineError("The engine is busy: a planned job needs it alone.")
        old = scheduler.waiting, scheduler.meter
        scheduler.waiting, scheduler.meter = new, meter
        return old

    meter = Meter()
    before = await asyncio.wrap_future(compute.future(lambda: exchange(policy, meter)))
    try:
        yield scheduler.tree, meter
    finally:

        def restore() -> None:
            policy.release(scheduler.tree)
            scheduler.waiting, scheduler.meter = before

        compute.call(restore)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error of several that ended a run together."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
