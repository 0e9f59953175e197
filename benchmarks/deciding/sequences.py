"""A small model answers sums alone, by vote, by debate, and in sequence by learnt settings.

Every arm may generate as many tokens a sum as every other. Settings of all fixed arms are the best
of a few on the sums that policies learn from; nothing is chosen on those that all are held to.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from deciding.sums import apart
from shoal.core.claims import Bench
from shoal.core.protocols import Engine, Sampling
from shoal.core.stats import difference_interval, mcnemar_test, wilson_interval
from shoal.engine.open import open_engine
from shoal.mechanisms.generations import Generations, Spoken
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.evaluators import Graded
from shoal.mechanisms.goods.features import State, state_of
from shoal.mechanisms.goods.leave_one_out import marginals, rank_correlation
from shoal.mechanisms.goods.prompts import ByExample, Heard
from shoal.mechanisms.goods.public_goods import Observe, PublicGoods
from shoal.mechanisms.goods.sequence import Decide, Group, Play, play
from shoal.mechanisms.goods.tasks import Task, answer_in, is_right
from shoal.training.bandit import BanditOptions
from shoal.training.decoding_policy import DecodingPolicies, Ranges
from shoal.training.spgg import Epoch, summary, train

NAMES = ("first", "second", "third")
BUDGET = 200
"""Tokens that an arm may generate for a sum, shared equally by its calls."""
LONGEST = 50
"""Tokens of one call at most: twice what an answer takes."""
RANGES = Ranges(max_tokens=(10, LONGEST), levels=3)
LEARN = BanditOptions(hidden=(16, 16), lr=0.03, entropy=0.0, target_kl=0.1)
FIXED = {
    "greedy": Sampling(),
    "temperature 0.3": Sampling(temperature=0.3, top_k=50),
    "temperature 0.7": Sampling(temperature=0.7, top_k=50),
}


@dataclass(slots=True)
class Arm:
    """What one way of working gave, a sum each."""

    right: list[bool]
    tokens: list[int]
    prompt_tokens: list[int]
    plays: Sequence[Play] = ()
    calls: int = 3


@dataclass(slots=True)
class Room:
    """What the model said so far, and how it is asked and scored."""

    known: Generations
    asking: ByExample
    tasks: list[Task]
    grade: Graded
    seeds: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.seeds = [10_000 + k for k in range(len(self.tasks))]

    def group(self, observe: Observe) -> Group:
        """Three copies of the model in sequence."""
        models = dict.fromkeys(NAMES, self.known)
        mechanism = PublicGoods(Game(), observe)
        return Group(mechanism, NAMES, models, self.asking, self.grade, LONGEST)

    async def say(
        self, sampling: Sampling, member: int, heard: Sequence[Sequence[Heard]], limit: int
    ) -> list[Spoken]:
        """One member's answers to all sums."""
        asked = replace(sampling, max_tokens=limit, stop=self.asking.stop)
        return await self.known.generate(
            [
                self.asking(task.question, NAMES[member], 1, 1, earlier)
                for task, earlier in zip(self.tasks, heard, strict=True)
            ],
            [replace(asked, seed=3 * seed + member) for seed in self.seeds],
        )


def with_models(bench: Bench, model: str = "smollm2-135m") -> None:
    """All arms on the same held-out sums, and how each compares with the learnt ones."""
    learn, hold = bench.pick(full=(40, 40), smoke=(2, 2))
    shown, learning, held = apart((5, learn, hold), bench.seed_of("sequences") % 2**31)
    engine = open_engine(model)

    async def work() -> None:
        try:
            await measure(bench, engine, tuple(shown), learning, held)
        finally:
            await engine.close()

    asyncio.run(work())


async def measure(
    bench: Bench, engine: Engine, shown: tuple[Task, ...], learning: list[Task], held: list[Task]
) -> None:
    """Choose settings, learn, and hold everything to sums that were not seen."""
    asking = ByExample(shown, stop=("\n\n",))
    known = Generations(engine, longest=LONGEST)
    grade = Graded(engine)
    best = await choose(bench, Room(known, asking, learning[:20], grade))
    room = Room(known, asking, held, grade)
    learnt, history = await teach(bench, room, learning)
    fixed = FIXED[best["one alone"]]
    middles = DecodingPolicies(NAMES, RANGES)
    arms: dict[str, Callable[[], Awaitable[Arm]]] = {
        "one alone": lambda: alone(room, fixed),
        "majority of three": lambda: majority(room, FIXED[best["majority of three"]]),
        "debate, one round": lambda: debate(room, FIXED[best["majority of three"]]),
        "sequence, last seen, fixed settings": lambda: sequence(room, "last", always(fixed)),
        "sequence, all seen, fixed settings": lambda: sequence(room, "all", always(fixed)),
        "sequence, last seen, middle settings": lambda: sequence(room, "last", middles.decide()),
        "sequence, all seen, middle settings": lambda: sequence(room, "all", middles.decide()),
        "MAC-SPGG, last seen": lambda: sequence(room, "last", learnt.decide()),
        "MAC-SPGG, all seen": lambda: sequence(room, "all", learnt.decide()),
    }
    found = dict(zip(arms, await asyncio.gather(*(way() for way in arms.values())), strict=True))
    report(bench, room, found)
    await contributions(bench, room, found)
    compare(bench, found)
    draw(bench, history)


async def choose(bench: Bench, room: Room) -> dict[str, str]:
    """The fixed settings that are best on sums to learn from; members of a vote must differ."""
    tried = await asyncio.gather(*(alone(room, sampling) for sampling in FIXED.values()))
    shares = {name: float(np.mean(arm.right)) for name, arm in zip(FIXED, tried, strict=True)}
    for name, share in shares.items():
        bench.arm(f"where settings are chosen: {name}", right=share)
    warm = {name: share for name, share in shares.items() if FIXED[name].temperature}
    return {
        "one alone": max(shares, key=shares.__getitem__),
        "majority of three": max(warm, key=warm.__getitem__),
    }


async def teach(
    bench: Bench, room: Room, learning: list[Task]
) -> tuple[DecodingPolicies, list[Epoch]]:
    """Policies that learn from the sums for learning, the last seen and all seen in turn.

    Their state tells what was seen, so one set serves both.
    """
    epochs, episodes = bench.pick(full=(24, 12), smoke=(1, 2))
    policies = DecodingPolicies(NAMES, RANGES, LEARN, seed=bench.seed_of("policies"))
    groups = room.group("last"), room.group("all")
    started, made, done = time.perf_counter(), room.known.made, []
    for epoch in bench.track(range(epochs), "policies"):
        done += await train(
            groups[epoch % 2], policies, learning, epochs=epoch + 1, episodes=episodes
        )
    few = max(1, epochs // 6)
    for name, part in (("first", done[:few]), ("last", done[-few:])):
        bench.arm(
            f"learning: {name} {few} of {epochs} epochs",
            rewards=float(np.mean([sum(one.summary.rewards) for one in part])),
            right=float(np.mean([one.summary.accuracy for one in part])),
            tokens=float(np.mean([one.summary.tokens for one in part])),
            bar_hit=float(np.mean([one.summary.bar_hit for one in part])),
            free_riders=float(np.mean([one.summary.free_riders for one in part])),
        )
    bench.arm(
        "learning: what it took",
        answers=epochs * episodes * 3,
        generated=room.known.made - made,
        seconds=time.perf_counter() - started,
    )
    settings = policies.decide()
    state = state_of(learning[0].question, 1, len(NAMES), [])
    for place, name in enumerate(NAMES):
        (one,) = settings(place, [state])
        bench.arm(
            f"learnt settings of the {name}, before anybody spoke",
            temperature=one.temperature,
            top_p=one.top_p,
            top_k=one.top_k,
            max_tokens=one.max_tokens,
            repetition_penalty=one.repetition_penalty,
            presence_penalty=one.presence_penalty,
        )
    return policies, done


def always(sampling: Sampling) -> Decide:
    """The same settings for everybody."""

    def decide(place: int, states: Sequence[State]) -> list[Sampling]:
        return [replace(sampling, max_tokens=LONGEST)] * len(states)

    return decide


async def alone(room: Room, sampling: Sampling) -> Arm:
    """One call a sum; it ends by itself long before its tokens are used up."""
    said = await room.say(sampling, 0, [[]] * len(room.tasks), LONGEST)
    return _arm(room, [one.text or "" for one in said], [said])


async def majority(room: Room, sampling: Sampling) -> Arm:
    """Three calls a sum that hear nothing of each other; most answers count."""
    none: list[list[Heard]] = [[] for _ in room.tasks]
    members = [await room.say(sampling, i, none, LONGEST) for i in range(3)]
    return _arm(
        room, [_most([one.text for one in said]) for said in zip(*members, strict=True)], members
    )


async def debate(room: Room, sampling: Sampling) -> Arm:
    """Three answers, then three that have seen the other two; most of the latter count."""
    none: list[list[Heard]] = [[] for _ in room.tasks]
    limit = BUDGET // 6
    first = [await room.say(sampling, i, none, limit) for i in range(3)]
    second = []
    for i in range(3):
        heard = [
            [Heard(NAMES[j], first[j][k].text) for j in range(3) if j != i]
            for k in range(len(room.tasks))
        ]
        second.append(await room.say(sampling, i, heard, limit))
    texts = [_most([one.text for one in said]) for said in zip(*second, strict=True)]
    return _arm(room, texts, [*first, *second])


async def sequence(room: Room, observe: Observe, decide: Decide) -> Arm:
    """Three calls in order, and the last one's answer."""
    plays = await play(room.group(observe), room.tasks, decide, seeds=room.seeds)
    return Arm(
        [one.right for one in plays],
        [one.tokens for one in plays],
        [one.prompt_tokens for one in plays],
        plays,
    )


def _arm(room: Room, texts: Sequence[str], said: Sequence[Sequence[Spoken]]) -> Arm:
    rows = list(zip(*said, strict=True))
    return Arm(
        [is_right(text, task) for text, task in zip(texts, room.tasks, strict=True)],
        [sum(one.tokens for one in row) for row in rows],
        [sum(one.prompt_tokens for one in row) for row in rows],
        calls=len(said),
    )


def _most(texts: Sequence[str | None]) -> str:
    """A text with the most frequent answer, the first of several."""
    answers = [answer_in(text or "") for text in texts]
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return ""
    return texts[answers.index(counts.most_common(1)[0][0])] or ""


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


def draw(bench: Bench, history: list[Epoch]) -> None:
    """Rewards and tokens while policies learn."""
    with bench.plot("policies", "What policies learn: rewards and tokens, by epoch", panels=2) as (
        rewards,
        tokens,
    ):
        rewards.plot([sum(one.summary.rewards) for one in history])
        tokens.plot([one.summary.tokens for one in history])
        rewards.set(xlabel="epoch", ylabel="sum of rewards")
        tokens.set(xlabel="epoch", ylabel="tokens generated a sum")
