"""Order and admission apart, in a job of groups that write and groups that read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from batching.arms import Answers, Arm, answered, rows_a_step, texts
from shoal.core.claims import Bench, alternate
from shoal.core.protocols import Grammar, Request, Sampling, Segment
from shoal.engine.batch.planned import Planned
from shoal.engine.generation import Generation, Job
from shoal.engine.outlook import Growth
from shoal.engine.policies import ArrivalOrder
from shoal.engine.scheduler import Meter
from shoal.engine.tree import PrefixTree
from shoal.models.loading import Model


class Counted(Planned):
    """Planned order, admission of so many requests whose prompts fit, as other engines do it."""

    most = 8

    def __init__(self) -> None:
        super().__init__()
        self._under_way: set[Job] = set()

    def growth(self, job: Generation) -> Growth:
        return Growth(1, ends=False)

    def head(self, tree: PrefixTree) -> Job | None:
        return None if len(self._under_way) >= self.most else super().head(tree)

    def placed(self, job: Job, tree: PrefixTree) -> None:
        self._under_way.add(job)
        super().placed(job, tree)

    def put_back(self, job: Job) -> None:
        self._under_way.discard(job)
        super().put_back(job)

    def ended(self, job: Job, tree: PrefixTree) -> None:
        self._under_way.discard(job)
        super().ended(job, tree)


MIXED: Mapping[str, Arm] = {
    "ratio order, expected growth": Arm(Planned),
    "longest prefix first, expected growth": Arm(lambda: Planned(order="prefix")),
    "ratio order, full growth": Arm(lambda: Planned(expects=False)),
    "ratio order, 8 requests": Arm(Counted),
    "LRU radix, first come": Arm(ArrivalOrder),
}


def mixing(bench: Bench, model: Model) -> None:
    """Order and admission apart, where some groups write and others read."""
    groups, members, length, said = bench.pick(full=(6, 4, 560, 64), smoke=(2, 2, 80, 8))
    readers = list(texts(model, groups + 1, length))
    rest = readers.pop()
    draw = bench.generator("mixing")

    def distinct(count: int) -> list[int]:
        return [int(token) for token in draw.permutation(rest)[:count]]

    requests = []
    for text in readers:
        for _ in range(members):
            long = Segment(tokens=(*text, *distinct(40)))
            requests.append(Request((long,), Sampling(max_tokens=4, ignore_eos=True)))
    for text in readers:
        for _ in range(members):
            short = Segment(tokens=(*text[:40], 7, *distinct(20)))
            forced = Grammar("choice", (model.tokenizer.decode(distinct(said)),))
            requests.append(Request((short,), Sampling(max_tokens=4 * said), forced))
    requests = [requests[place] for place in draw.permutation(len(requests))]
    slots = bench.pick(full=1_500, smoke=400)
    last: dict[str, tuple[Answers, Meter]] = {}

    def job(name: str) -> Callable[[], None]:
        def work() -> None:
            last[name] = answered(model, MIXED[name], requests, slots)

        return work

    seconds = alternate({name: job(name) for name in MIXED}, rounds=2, warmup=0)
    for name, timing in seconds.items():
        meter = last[name][1]
        bench.arm(
            f"C: {name}",
            wall_seconds=timing.seconds(),
            cpu_seconds=timing.seconds("cpu"),
            steps=meter.steps.total(),
            tokens_a_step=rows_a_step(meter),
            prefill_tokens=meter.prefill_tokens,
            repeated_tokens=meter.repeated_tokens,
        )
    ours = seconds[next(iter(MIXED))]
    for name, what in (
        ("longest prefix first, expected growth", "C: times faster by the order"),
        ("ratio order, full growth", "C: times faster by expected growth"),
        ("ratio order, 8 requests", "C: times faster than admission of 8 requests"),
    ):
        times = ours.times_faster_than(seconds[name], seed=bench.seed)
        bench.verdict(what, times, at_least=1.0)
    with bench.plot("steps", "Tokens of a forward pass, sorted") as (axes,):
        for name, (_, meter) in last.items():
            axes.plot(sorted(meter.steps.elements(), reverse=True), label=name, lw=1)
        axes.set_xlabel("step")
        axes.set_ylabel("tokens")
        axes.legend(fontsize=7)
