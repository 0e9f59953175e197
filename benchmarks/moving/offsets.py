"""KVCOMM's offsets under KVShare's repair: what a moved text gains from both."""

from __future__ import annotations

from collections.abc import Sequence

from moving.probing import probe
from moving.texts import Case
from moving.timed import Timed
from shoal.core.claims import Bench
from shoal.core.protocols import Request, Sampling, Segment
from shoal.core.stats import Interval, mean_interval, ratio_interval
from shoal.engine.generation import Composition, Piece
from shoal.engine.kvcomm import CommPolicy, KVComm
from shoal.engine.repair import Repair

ANCHORS = 4  # other texts seen behind the same words
FORCED = 12
ROTATED, REPAIRED, OFFSET, BOTH = (
    "rotation only",
    "values 15 %",
    "offsets",
    "offsets, then values 15 %",
)


def asked(case: Case, text: Sequence[int], new: int = 0) -> Request:
    """The case's prompt around a text, which is a placeholder."""
    return Request(
        (
            Segment(tokens=case.before),
            Segment(tokens=tuple(text), name="text"),
            Segment(tokens=case.after),
        ),
        Sampling(max_tokens=new, ignore_eos=True),
    )


async def with_offsets(
    bench: Bench, engine: Timed, cases: Sequence[Case], anchors: Sequence[tuple[int, ...]]
) -> None:
    """Divergence from dense with offsets, with repair, and with both; one text in each prompt."""
    kl: dict[str, list[float]] = {name: [] for name in (ROTATED, REPAIRED, OFFSET, BOTH)}
    for case in bench.track(cases, "offsets"):
        text = case.texts[0]
        learner = KVComm(engine, CommPolicy(gated=False, gamma=0, after="computed"))
        for other in [each for each in anchors if each != text][:ANCHORS]:
            await learner.generate([asked(case, other)])
        template = learner.template(asked(case, text))
        exact = (Piece(template.tokens[:-1]), Piece(template.tokens[-1:]))
        sampling = Sampling(max_tokens=FORCED, ignore_eos=True)
        (dense,) = await engine.compose([Composition(Request((), sampling), exact)])
        reference = await probe(engine, exact, None, dense.tokens)
        offset = await learner.pieces(template)
        plain = learner.with_policy(CommPolicy(offsets=False, after="computed"))
        rotated = await plain.pieces(template)
        for name, pieces, repair in (
            (ROTATED, rotated, Repair("none")),
            (REPAIRED, rotated, Repair("values")),
            (OFFSET, offset, Repair("none")),
            (BOTH, offset, Repair("values")),
        ):
            found = await probe(engine, pieces, repair, dense.tokens)
            kl[name].append(float((reference.exp() * (reference - found)).sum(-1).mean()))
    for name, each in kl.items():
        bench.arm(f"with KVCOMM: {name}", kl_to_dense_nats=_mean(bench, each))
    if len(cases) < 2:
        return
    bench.verdict(
        "KL of offsets and repair together over that of repair alone (one text a prompt)",
        ratio_interval(kl[BOTH], kl[REPAIRED], seed=bench.seed),
        at_most=1.0,
    )


def _mean(bench: Bench, found: list[float]) -> Interval | float:
    return mean_interval(found, seed=bench.seed) if len(found) > 1 else found[0]
