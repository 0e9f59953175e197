"""An ensemble that writes one answer: each token from the mean of all members' distributions.

Late-stage collaboration (collaboration survey, arXiv 2501.06322): all members' next-token
log-probabilities are averaged, renormalised, and one token is drawn for all. Engines tell their
``TOP`` likeliest tokens; a token that a member does not list counts there as its least likely
listed one, so the mean is exact where the lists hold the whole vocabulary. Members must share
their tokens' texts. Prompts are plain text here, as an answer that has begun cannot be handed
back through a chat template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal.core import rng
from shoal.core.errors import EngineError
from shoal.core.protocols import Completion, Engine, Request, Sampling, Segment, TokenLogprob
from shoal.core.records import Finish, Message, Usage

TOP = 20


@dataclass(frozen=True, slots=True)
class Voice:
    """One member of the ensemble: where its distribution comes from."""

    engine: Engine
    prompt: tuple[Message, ...]


async def write_together(voices: Sequence[Voice], sampling: Sampling) -> list[Completion]:
    """The common answer, once for each voice with what that voice cost.

    Temperature, length, stop strings and seed are those of ``sampling``. Raises
    :class:`EngineError` for an engine that tells no log-probabilities.
    """
    step = replace(sampling, max_tokens=1, temperature=1.0, logprobs=TOP, stop=(), min_tokens=0)
    usage = [Usage() for _ in voices]
    tokens: list[int] = []
    finish: Finish = "length"
    text = ""
    for place in range(sampling.max_tokens):
        groups: dict[int, list[int]] = {}
        for index, voice in enumerate(voices):
            groups.setdefault(id(voice.engine), []).append(index)
        heard: dict[int, TokenLogprob | None] = {}
        for members in groups.values():
            requests = [Request((_plain(voices[i].prompt, text),), step) for i in members]
            completions = await voices[members[0]].engine.generate(requests)
            for i, completion in zip(members, completions, strict=True):
                usage[i] += completion.usage
                heard[i] = _next(completion)
        if any(one is None for one in heard.values()):
            finish = "stop"  # a member would end here: there is no distribution to average
            break
        listed = [_listed(one) for one in heard.values() if one is not None]
        token, piece = drawn(mean(listed), sampling, place)
        tokens.append(token)
        text += piece
        cut = next((stop for stop in sampling.stop if stop in text), None)
        if cut is not None:
            text, finish = text.partition(cut)[0], "stop"
            break
    return [Completion(text, tuple(tokens), finish, spent) for spent in usage]


def mean(listed: Sequence[dict[tuple[int, str], float]]) -> dict[tuple[int, str], float]:
    """Mean log-probabilities over the union of what is listed, renormalised."""
    union = sorted({token for one in listed for token in one})
    floors = [min(one.values()) for one in listed]
    means = {
        token: math.fsum(one.get(token, floor) for one, floor in zip(listed, floors, strict=True))
        / len(listed)
        for token in union
    }
    highest = max(means.values())
    total = highest + math.log(math.fsum(math.exp(value - highest) for value in means.values()))
    return {token: value - total for token, value in means.items()}


def drawn(
    logprobs: dict[tuple[int, str], float], sampling: Sampling, place: int
) -> tuple[int, str]:
    """The likeliest token, or one drawn at the temperature; of equal ones the lowest id."""
    order = sorted(logprobs, key=lambda token: (-logprobs[token], token))
    if sampling.temperature == 0:
        return order[0]
    highest = logprobs[order[0]]
    weights = [math.exp((logprobs[t] - highest) / sampling.temperature) for t in order]
    chance = rng.uniform(sampling.seed, "lockstep", place) * math.fsum(weights)
    for token, weight in zip(order, weights, strict=True):
        chance -= weight
        if chance < 0:
            return token
    return order[-1]


def _plain(prompt: Sequence[Message], text: str) -> Segment:
    words = "\n\n".join(message.content for message in prompt)
    return Segment(f"{words}\n\nAnswer:{text}")


def _next(completion: Completion) -> TokenLogprob | None:
    if completion.error is not None:
        raise EngineError(completion.error)
    if completion.finish == "stop" and not completion.text:
        return None
    if completion.logprobs:
        return completion.logprobs[0]
    raise EngineError("A lockstep ensemble needs an engine that tells log-probabilities.")


def _listed(one: TokenLogprob) -> dict[tuple[int, str], float]:
    listed = {(token, text): logprob for token, text, logprob in one.top}
    listed.setdefault((one.token, one.text), one.logprob)
    return listed
