"""A small model answers sums alone, by vote, by debate, and in sequence by learnt settings.

Every arm may generate as many tokens a sum as every other. The order of agents, what they see of
each other, fixed settings and the game are chosen on the sums that policies learn from; nothing is
chosen on those that all are held to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np

from deciding import bars
from deciding.lessons import Lesson, teach
from deciding.sums import apart
from deciding.trio import (
    EXAMPLES,
    LONGEST,
    NAMES,
    RANGES,
    WRONG,
    Room,
    each,
    hearing_answers,
    hearing_texts,
)
from deciding.ways import Arm, alone, always, debate, majority, sequence, thrice
from shoal.core.claims import Bench
from shoal.core.protocols import Engine, Sampling
from shoal.core.stats import difference_interval, mcnemar_test, wilson_interval
from shoal.engine.open import open_engine
from shoal.mechanisms.generations import Generations
from shoal.mechanisms.goods.evaluators import Graded
from shoal.mechanisms.goods.leave_one_out import marginals, rank_correlation
from shoal.mechanisms.goods.prompts import Each
from shoal.mechanisms.goods.public_goods import Observe
from shoal.mechanisms.goods.tasks import Task
from shoal.training.decoding_policy import DecodingPolicies
from shoal.training.spgg import summary

FIXED = {
    "greedy": Sampling(),
    "temperature 0.3": Sampling(temperature=0.3, top_k=50),
    "temperature 0.7": Sampling(temperature=0.7, top_k=50),
}
FEW = 40
"""Of the sums to learn from, those on which hearing and settings are measured."""
OBSERVED: tuple[Observe, ...] = ("last", "all")


def with_models(bench: Bench, model: str = "smollm2-135m") -> None:
    """All arms on the same held-out sums, and how each compares with the learnt ones."""
    learn, hold = bench.pick(full=(60, 60), smoke=(2, 2))
    sets = apart((EXAMPLES, EXAMPLES, EXAMPLES, learn, hold), bench.seed_of("sequences") % 2**31)
    engine = open_engine(model)

    async def work() -> None:
        try:
            await measure(bench, engine, sets[:3], *sets[3:])
        finally:
            await engine.close()

    asyncio.run(work())


async def measure(
    bench: Bench,
    engine: Engine,
    shown: list[list[Task]],
    learning: list[Task],
    held: list[Task],
) -> None:
    """Choose, learn, and hold everything to sums that were not seen."""
    known, grade = Generations(engine, longest=LONGEST), Graded(engine)
    room = Room(known, each([hearing_answers(one) for one in shown]), learning, grade)
    shown = await in_order(bench, room, shown)
    few = replace(room, tasks=learning[:FEW])
    room.asking = few.asking = await hearing(bench, few, shown)
    contrast = replace(room)
    room.game = bars.choose(bench, await bars.measure(few))
    fixed, warm, silent = await settings(bench, room)
    epochs, fewer, episodes = bench.pick(full=(12, 6, 45), smoke=(1, 0, 2))
    lesson = free = await teach(bench, "chosen game", room, epochs=epochs, episodes=episodes)
    if fewer:
        free = await teach(bench, "published game", contrast, epochs=fewer, episodes=episodes)
    room.tasks, contrast.tasks, room.silent = held, held, silent
    found = await played(room, contrast, fixed, warm, lesson, free)
    report(bench, room, found)
    await contributions(bench, room, found)
    compare(bench, found)
    draw(bench, {"chosen game": lesson, "published game": free})


async def played(
    room: Room, contrast: Room, fixed: Sampling, warm: Sampling, lesson: Lesson, free: Lesson
) -> dict[str, Arm]:
    """All arms on the room's sums."""
    middles, learnt = DecodingPolicies(NAMES, RANGES), lesson.policies
    arms: dict[str, Callable[[], Awaitable[Arm]]] = {
        "one alone": lambda: alone(room, fixed),
        "one alone, three tries": lambda: thrice(room, warm),
        "majority of three": lambda: majority(room, fixed),
        "debate, one round": lambda: debate(room, fixed),
        "sequence, last seen, fixed settings": lambda: sequence(room, "last", always(fixed)),
        "sequence, all seen, fixed settings": lambda: sequence(room, "all", always(fixed)),
        "sequence, last seen, middle settings": lambda: sequence(room, "last", middles.decide()),
        "sequence, all seen, middle settings": lambda: sequence(room, "all", middles.decide()),
        "learnt in the published game, last seen": lambda: sequence(
            contrast, "last", free.policies.decide()
        ),
        "MAC-SPGG, last seen": lambda: sequence(room, "last", learnt.decide()),
        "MAC-SPGG, all seen": lambda: sequence(room, "all", learnt.decide()),
    }
    return dict(zip(arms, await asyncio.gather(*(way() for way in arms.values())), strict=True))


async def in_order(bench: Bench, room: Room, shown: list[list[Task]]) -> list[list[Task]]:
    """Examples of the weakest agent first, by what each gets right on the room's sums."""
    tried = await asyncio.gather(*(alone(room, FIXED["greedy"], i) for i in range(3)))
    shares = [float(np.mean(arm.right)) for arm in tried]
    order = sorted(range(3), key=shares.__getitem__)
    for name, i in zip(NAMES, order, strict=True):
        bench.arm(f"to learn from: the {name} alone", right=shares[i])
    return [shown[i] for i in order]


async def hearing(bench: Bench, room: Room, shown: list[list[Task]]) -> Each:
    """The way of hearing others that is best for the last agent: their texts, or their answers."""
    ways = {"texts": each([hearing_texts(one) for one in shown])}
    for how in list(WRONG)[: bench.pick(full=len(WRONG), smoke=1)]:
        ways[how] = each([hearing_answers(one, how) for one in shown])
    rooms = [replace(room, asking=asking) for asking in ways.values()]
    arms = await asyncio.gather(
        *(sequence(one, observe, always(FIXED["greedy"])) for one in rooms for observe in OBSERVED)
    )
    shares = np.reshape([np.mean(arm.right) for arm in arms], (len(ways), len(OBSERVED)))
    for how, (last, everything) in zip(ways, shares.tolist(), strict=True):
        bench.arm(
            f"to learn from: the third in sequence, hearing {how}",
            last_seen=last,
            all_seen=everything,
        )
    return list(ways.values())[int(shares.mean(axis=1).argmax())]


async def settings(bench: Bench, room: Room) -> tuple[Sampling, Sampling, int]:
    """The fixed settings that are best for the strongest, the best for tries that differ, and
    whether to tell it of another who says nothing, as examples look otherwise then."""
    ways = [(name, silent) for silent in (0, 1) for name in FIXED]
    rooms = [replace(room, silent=silent) for silent in (0, 1)]
    tried = await asyncio.gather(*(alone(rooms[silent], FIXED[name]) for name, silent in ways))
    shares = {way: float(np.mean(arm.right)) for way, arm in zip(ways, tried, strict=True)}
    for name in FIXED:
        bench.arm(
            f"to learn from: the third alone, {name}",
            told_of_nobody=shares[name, 0],
            told_of_one_who_is_silent=shares[name, 1],
        )
    best, silent = max(shares, key=shares.__getitem__)
    warm = [name for name in FIXED if FIXED[name].temperature]
    return FIXED[best], FIXED[max(warm, key=lambda name: shares[name, silent])], silent


def report(bench: Bench, room: Room, found: dict[str, Arm]) -> None:
    """One row an arm: right answers, tokens, and of sequences what the game says of them."""
    for name, arm in found.items():
        n = len(arm.right)
        bench.arm(
            name,
            accuracy=wilson_interval(sum(arm.right), n),
            calls=arm.calls,
            tokens_generated=float(np.mean(arm.tokens)),
            tokens_of_prompts=float(np.mean(arm.prompt_tokens)),
        )
    for name, arm in found.items():
        if not arm.plays:
            continue
        one = summary(room.group("all"), arm.plays)
        bench.arm(
            f"{name}: the game",
            **{f"c{i + 1}": c for i, c in enumerate(one.contributions)},
            **{f"effort{i + 1}": c for i, c in enumerate(one.efforts)},
            free_riders=one.free_riders,
            bar_hit=one.bar_hit,
            welfare=one.welfare,
        )


async def contributions(bench: Bench, room: Room, found: dict[str, Arm]) -> None:
    """What the last score loses without each agent, beside what its text scored."""
    few = bench.pick(full=10, smoke=1)
    views: dict[str, Observe] = {"MAC-SPGG, last seen": "last", "MAC-SPGG, all seen": "all"}
    worths = await asyncio.gather(
        *(marginals(room.group(view), found[name].plays[:few]) for name, view in views.items())
    )
    for name, worth in zip(views, worths, strict=True):
        scores = np.array([[turn.score for turn in one.turns] for one in found[name].plays[:few]])
        lost = zip(NAMES, worth.mean(axis=0).tolist(), strict=True)
        bench.arm(
            f"{name}: leave one out, {few} sums",
            **{f"without_{agent}": one for agent, one in lost},
            rank_correlation_with_scores=rank_correlation(worth, scores),
        )


def compare(bench: Bench, found: dict[str, Arm]) -> None:
    """Paired tests of the learnt sequences against all others, and what was promised."""
    for name in ("MAC-SPGG, last seen", "MAC-SPGG, all seen"):
        ours = np.array(found[name].right, dtype=float)
        for other, arm in found.items():
            if other.startswith("MAC-SPGG"):
                continue
            theirs = np.array(arm.right, dtype=float)
            p = mcnemar_test(ours, theirs)
            bench.arm(
                f"{name} less {other}",
                points=100 * float(ours.mean() - theirs.mean()),
                mcnemar_p=p,
                separable=float(p < 0.05),
            )
    for observe in ("last", "all"):
        name = f"MAC-SPGG, {observe} seen"
        ours = np.array(found[name].right, dtype=float)
        for what, other, least in (
            ("the sequence with fixed settings", f"sequence, {observe} seen, fixed settings", 0.02),
            (
                "the sequence with middle settings",
                f"sequence, {observe} seen, middle settings",
                0.02,
            ),
            ("majority of three", "majority of three", 0.0),
            ("one alone", "one alone", 0.0),
        ):
            theirs = np.array(found[other].right, dtype=float)
            bench.verdict(
                f"{name}: accuracy less that of {what}",
                _difference(ours, theirs, bench),
                at_least=least,
            )
        ratio = float(np.mean(found[name].tokens) / np.mean(found["debate, one round"].tokens))
        bench.verdict(f"{name}: tokens generated by those of debate", ratio, at_most=0.6)


def _difference(ours: np.ndarray, theirs: np.ndarray, bench: Bench) -> object:
    if (ours - theirs == (ours - theirs)[0]).all():
        return float(ours.mean() - theirs.mean())
    return difference_interval(ours, theirs, paired=True, seed=bench.seed)


def draw(bench: Bench, lessons: dict[str, Lesson]) -> None:
    """Rewards and tokens while policies learn."""
    with bench.plot(
        "policies", "What policies learn: right answers and tokens, by epoch", panels=2
    ) as (right, tokens):
        for name, lesson in lessons.items():
            right.plot([one.summary.accuracy for one in lesson.history], label=name)
            tokens.plot([one.summary.tokens for one in lesson.history], label=name)
        right.set(xlabel="epoch", ylabel="share of sums right")
        tokens.set(xlabel="epoch", ylabel="tokens generated a sum")
        right.legend(fontsize=7)
