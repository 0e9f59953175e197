"""Time to the first token of agents that read one document and what the others said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import numpy as np

from shoal.core.claims import Bench
from shoal.core.protocols import Request, Sampling, Segment
from shoal.core.records import Message
from shoal.core.stats import ratio_interval
from shoal.engine.kvcomm import CommPolicy, KVComm
from shoal.engine.local import LocalEngine

DOCUMENTS = Path(__file__).parents[2] / "examples" / "documents" / "jargon"
READERS = {
    "reader": "You are the reader of a team. You say what a text is about, in plain words.",
    "critic": "You are the critic of a team. You doubt what you read, and you say why, briefly.",
    "editor": "You are the editor of a team. You weigh what the others said and you conclude.",
}


EXACT, ORDERED, PAPER, GATED = (
    "exact prefix",
    "reordered prompt",
    "KVCOMM",
    "KVCOMM, gate on",
)


async def times(bench: Bench, engines: Sequence[LocalEngine]) -> None:
    """Three agents read one document, each behind its own words; three ways to share."""
    documents = texts(engines[0], bench.pick(full=11, smoke=3), bench.pick(full=1000, smoke=200))
    warm, answer = bench.pick(full=3, smoke=2), bench.pick(full=16, smoke=8)
    exact, ordered, *others = engines
    comms = {
        PAPER: KVComm(others[0], CommPolicy(gated=False)),
        GATED: KVComm(others[1], CommPolicy()),
    }
    arms = {EXACT: exact, ORDERED: ordered, **comms}
    first: dict[tuple[str, int], list[float]] = defaultdict(list)
    computed: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, document in enumerate(bench.track(documents, "documents")):
        for arm, where in arms.items():
            said: list[str] = []
            for place, (name, role) in enumerate(READERS.items()):
                request = reading(role, name, document, said, answer, first_text=arm == ORDERED)
                if arm not in comms:
                    segments = (Segment(tokens=comms[PAPER].template(request).tokens),)
                    request = replace(request, prompt=segments, placeholders=())
                (done,) = await where.generate([request])
                assert not done.error, done.error
                said.append(" ".join(done.text.split()))  # as a prompt is searched for it
                if index >= warm:
                    first[arm, place].append(done.usage.first_token_ms)
                    computed[arm, place].append(done.usage.computed_prompt_tokens)
    for arm in arms:
        for place, name in enumerate(READERS):
            bench.arm(
                f"{arm}: {name}",
                first_token_ms=median(first[arm, place]),
                prompt_tokens_computed=median(computed[arm, place]),
            )
    for arm, comm in comms.items():
        calls = comm.calls[len(READERS) * warm :]
        looks = [call.kl for call in comm.calls if call.kl is not None]
        bench.arm(
            f"{arm}: calls after the first documents",
            moved=sum(call.mode == "moved" for call in calls) / len(calls),
            prepare_ms=median(call.prepare_ms for call in calls),
            looks=len(looks),
            **({"kl_of_looks": mean(looks)} if looks else {}),
        )
    judge(bench, first)
    with bench.plot("first-token", "Time to first token by agent, median") as (axes,):
        for offset, arm in enumerate(arms):
            places = np.arange(len(READERS)) + 0.2 * (offset - 1.5)
            heights = [median(first[arm, place]) for place in range(len(READERS))]
            axes.bar(places, heights, 0.2, label=arm)
        axes.set_xticks(range(len(READERS)), list(READERS))
        axes.set_ylabel("ms")
        axes.margins(y=0.25)
        axes.legend(loc="upper center", ncols=2)


def judge(bench: Bench, first: dict[tuple[str, int], list[float]]) -> None:
    """Times of the agents after the first one, paired by document and agent."""
    arms = (EXACT, ORDERED, PAPER, GATED)
    later = {arm: [ms for place in (1, 2) for ms in first[arm, place]] for arm in arms}
    for base, arm, least in (
        (EXACT, PAPER, 3.0),
        (EXACT, GATED, 3.0),
        (ORDERED, PAPER, 1.0),
    ):
        bench.verdict(
            f"time to first token of later agents: {base} over {arm}",
            ratio_interval(later[base], later[arm], seed=bench.seed),
            at_least=least,
        )


def reading(
    role: str, name: str, document: str, said: Sequence[str], answer: int, *, first_text: bool
) -> Request:
    """An agent's prompt; with ``first_text`` what all read stands before who they are."""
    heard = " ".join(said)
    placeholders = [Segment(document, name="document")]
    if said:
        placeholders.append(Segment(heard, name="said"))
    others = f"\n\nThe others said: {heard}" if said else ""
    task = f"You are the {name}. Say it in one sentence."
    if first_text:
        system, user = "You work in a team.", f"Text: {document}{others}\n\n{role} {task}"
    else:
        system, user = role, f"Text: {document}{others}\n\n{task}"
    return Request(
        (Message("system", system), Message("user", user)),
        Sampling(max_tokens=answer, ignore_eos=True),
        placeholders=tuple(placeholders),
    )


def texts(engine: LocalEngine, count: int, tokens: int) -> list[str]:
    """Pieces of real text of nearly equal length, the longest first."""
    words = " ".join(path.read_text() for path in sorted(DOCUMENTS.glob("*.md"))).split()
    length = int(tokens * 0.62)
    stride = (len(words) - length) // count
    cut = [" ".join(words[i * stride : i * stride + length]) for i in range(count)]
    return sorted(cut, key=lambda text: -engine.count_tokens((Segment(text),)))
