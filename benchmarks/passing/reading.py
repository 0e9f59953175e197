"""Time to the first token of agents that read one document and what the others said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

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


async def times(bench: Bench, engines: Sequence[LocalEngine]) -> None:
    """Three agents read one document, each behind its own words; three ways to share."""
    documents = texts(engines[0], bench.pick(full=12, smoke=3), bench.pick(full=1000, smoke=200))
    warm = bench.pick(full=4, smoke=2)
    exact, ordered, engine = engines
    comm = KVComm(engine, CommPolicy(gated=False, gamma=1, size=warm))
    arms = {"exact prefix": exact, "reordered prompt": ordered, "KVCOMM": comm}
    first: dict[tuple[str, int], list[float]] = defaultdict(list)
    computed: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, document in enumerate(bench.track(documents, "documents")):
        for arm, where in arms.items():
            said: list[str] = []
            for place, (name, role) in enumerate(READERS.items()):
                request = reading(role, name, document, said, first_text=arm == "reordered prompt")
                template = comm.template(request)
                if arm != "KVCOMM":
                    segments = (Segment(tokens=template.tokens),)
                    request = replace(request, prompt=segments, placeholders=())
                (answer,) = await where.generate([request])
                assert not answer.error, answer.error
                said.append(padded(engine, answer.text))
                if index >= warm:
                    first[arm, place].append(answer.usage.first_token_ms)
                    computed[arm, place].append(answer.usage.computed_prompt_tokens)
    moved = [call.mode for call in comm.calls[len(READERS) * warm :]]
    for arm in arms:
        for place, name in enumerate(READERS):
            bench.arm(
                f"{arm}: {name}",
                first_token_ms=median(first[arm, place]),
                prompt_tokens_computed=median(computed[arm, place]),
            )
    bench.arm("calls moved after the first documents", share=moved.count("moved") / len(moved))
    later = range(1, len(READERS))
    pairs = {arm: [ms for place in later for ms in first[arm, place]] for arm in arms}
    bench.verdict(
        "time to first token of later agents: exact prefix over KVCOMM",
        ratio_interval(pairs["exact prefix"], pairs["KVCOMM"], seed=bench.seed),
        at_least=3.0,
    )
    bench.verdict(
        "time to first token of later agents: reordered prompt over KVCOMM",
        ratio_interval(pairs["reordered prompt"], pairs["KVCOMM"], seed=bench.seed),
        at_least=1.0,
    )
    with bench.plot("first-token", "Time to first token by agent, median") as (axes,):
        for offset, arm in enumerate(arms):
            places = np.arange(len(READERS)) + 0.25 * (offset - 1)
            heights = [median(first[arm, place]) for place in range(len(READERS))]
            axes.bar(places, heights, 0.25, label=arm)
        axes.set_xticks(range(len(READERS)), list(READERS))
        axes.set_ylabel("ms")
        axes.legend()


def reading(
    role: str, name: str, document: str, said: Sequence[str], *, first_text: bool
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
        Sampling(max_tokens=24, ignore_eos=True),
        placeholders=tuple(placeholders),
    )


def texts(engine: LocalEngine, count: int, tokens: int) -> list[str]:
    """Pieces of real text of nearly equal length, the longest first."""
    words = " ".join(path.read_text() for path in sorted(DOCUMENTS.glob("*.md"))).split()
    length = int(tokens * 0.62)
    stride = (len(words) - length) // count
    cut = [" ".join(words[i * stride : i * stride + length]) for i in range(count)]
    return sorted(cut, key=lambda text: -engine.count_tokens((Segment(text),)))


def padded(engine: LocalEngine, answer: str) -> str:
    """An answer without what would break the search for it in a prompt."""
    return " ".join(answer.split())
