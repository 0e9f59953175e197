"""Ways in which three agents come to one answer: alone, by vote, by debate, and in sequence."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deciding.trio import BUDGET, LONGEST, NAMES, Room
from shoal.core.protocols import Sampling
from shoal.mechanisms.generations import Spoken
from shoal.mechanisms.goods.features import State
from shoal.mechanisms.goods.prompts import Heard
from shoal.mechanisms.goods.public_goods import Observe
from shoal.mechanisms.goods.sequence import Decide, Play, play
from shoal.mechanisms.goods.tasks import answer_in, is_right

BEST = len(NAMES) - 1
"""The strongest member's place."""


@dataclass(slots=True)
class Arm:
    """What one way of working gave, a sum each."""

    right: list[bool]
    tokens: list[int]
    prompt_tokens: list[int]
    plays: Sequence[Play] = ()
    calls: int = 3


def always(sampling: Sampling) -> Decide:
    """The same settings for everybody."""

    def decide(place: int, states: Sequence[State]) -> list[Sampling]:
        return [replace(sampling, max_tokens=LONGEST)] * len(states)

    return decide


async def alone(room: Room, sampling: Sampling, member: int = BEST) -> Arm:
    """One call a sum; it ends by itself long before its tokens are used up."""
    said = await room.say(sampling, member)
    return _arm(room, [one.text or "" for one in said], [said])


async def thrice(room: Room, sampling: Sampling) -> Arm:
    """The strongest alone with as many tokens as three have: its own three tries vote."""
    tries = await asyncio.gather(*(room.say(sampling, BEST, again=k) for k in range(3)))
    return _voted(room, tries, tries)


async def majority(room: Room, sampling: Sampling) -> Arm:
    """Three calls a sum that hear nothing of each other; most answers count."""
    members = await asyncio.gather(*(room.say(sampling, i) for i in range(3)))
    return _voted(room, members, members)


async def debate(room: Room, sampling: Sampling) -> Arm:
    """Three answers, then three that have seen the other two; most of the latter count."""
    limit = BUDGET // 6
    first = await asyncio.gather(*(room.say(sampling, i, limit=limit) for i in range(3)))
    heard = [
        [
            [Heard(NAMES[j], first[j][k].text) for j in range(3) if j != i]
            for k in range(len(room.tasks))
        ]
        for i in range(3)
    ]
    second = await asyncio.gather(*(room.say(sampling, i, heard[i], limit) for i in range(3)))
    return _voted(room, second, [*first, *second])


async def sequence(room: Room, observe: Observe, decide: Decide) -> Arm:
    """Three calls in order, and the last one's answer."""
    plays = await play(room.group(observe), room.tasks, decide, seeds=room.seeds)
    return Arm(
        [one.right for one in plays],
        [one.tokens for one in plays],
        [one.prompt_tokens for one in plays],
        plays,
    )


def _voted(room: Room, voters: Sequence[Sequence[Spoken]], said: Sequence[Sequence[Spoken]]) -> Arm:
    texts = [_most([one.text for one in row]) for row in zip(*voters, strict=True)]
    return _arm(room, texts, said)


def _arm(room: Room, texts: Sequence[str], said: Sequence[Sequence[Spoken]]) -> Arm:
    rows = list(zip(*said, strict=True))
    return Arm(
        [is_right(text, task) for text, task in zip(texts, room.tasks, strict=True)],
        [sum(one.tokens for one in row) for row in rows],
        [sum(one.prompt_tokens for one in row) for row in rows],
        calls=len(said),
    )


def _most(texts: Sequence[str | None]) -> str:
    """A text with the most frequent answer; where none is, that of the last who answered."""
    answers = [answer_in(text or "") for text in texts]
    counts = Counter(answer for answer in reversed(answers) if answer is not None)
    if not counts:
        return ""
    return texts[answers.index(counts.most_common(1)[0][0])] or ""
