"""Reducers: how the members' last words become one result.

A reducer returns the result; or the turn of a member whose answer is the result; or turns to be
taken at once before it is asked again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from shoal.agents.auctions import MOST_GOODS, Best, Rule, sealed, vcg
from shoal.agents.elections import RANKED, first_choices
from shoal.agents.payloads import json_in
from shoal.agents.rules import NOBODY, Member, Members, Names, Registry, Shares
from shoal.agents.turns import SCORES, Turn, gated
from shoal.agents.votes import ballot
from shoal.core import rng
from shoal.core.errors import ConfigError

if TYPE_CHECKING:
    from shoal.agents.state import State


@dataclass(frozen=True, slots=True)
class Reduction:
    """A result (None: the rule found none) and how it came about, which is logged."""

    result: str | None
    data: Mapping[str, Any] = field(default_factory=dict)


Reducer = Callable[["State"], Reduction | Turn | tuple[Turn, ...]]

reducers: Registry[Reducer] = Registry("reduce", "shoal.reducers")


@reducers.register("last")
def last(of: Members = ()) -> Reducer:
    """The last word spoken by these members or by all (by name where several spoke at once)."""

    def reduce(state: State) -> Reduction:
        proposals = [
            step for step in state.proposals() if not of or _declared(state, step.member) in of
        ]
        return Reduction(proposals[-1].output if proposals else None)

    return reduce


@reducers.register("none")
def none() -> Reducer:
    """There is no common result; what counts is what happened."""
    return lambda state: Reduction("")


@reducers.register("concat")
def concat() -> Reducer:
    """All members' last words, in the order they were declared, under their names."""

    def reduce(state: State) -> Reduction:
        texts = [f"{name}: {step.output}" for name in state.names if (step := state.last(name))]
        return Reduction("\n\n".join(texts) if texts else None)

    return reduce


Method = Literal["plurality", "majority", "weighted", "approval", "borda", "irv", "condorcet"]


@reducers.register("vote")
def vote(
    method: Method = "plurality",
    choices: Names = (),
    weights: Shares = NOBODY,  # type: ignore[assignment]
) -> Reducer:
    """The answer with most votes; a tie is broken by the run's seed, and the log says so.

    Members' last words are the votes; with ``choices`` each casts a ballot that is held to them.
    ``majority`` asks for more than half of all votes and finds no result without. ``weighted``
    counts ``weights``, 1 for whoever is not named. ``approval``, ``borda``, ``irv`` and
    ``condorcet`` read a list, best first: ``Answer: B > A > C`` (or with commas).
    """

    def reduce(state: State) -> Reduction | tuple[Turn, ...]:
        if choices:
            cast = {name: state.choice_of(name, at=state.superstep - 1) for name in state.names}
            votes = {name: choice for name, choice in cast.items() if choice in choices}
            if not votes:
                voters = (name for name in state.names if name in state.speakers - state.out)
                return tuple(Turn(name, choices, "How do you vote?") for name in voters)
            said = {choice: choice for choice in choices}
            return _elected(state, {n: (v,) for n, v in votes.items() if v}, said, method, weights)
        ballots: dict[str, tuple[str, ...]] = {}
        said = {}
        for step in reversed(state.proposals()):
            ranked = _ranking(step.output) if method in RANKED else (ballot(step.output),)
            ballots[_name(step.member)] = ranked
            for option in ranked:
                said[option] = option if method in RANKED else step.output
        return _elected(state, ballots, said, method, weights)

    return reduce


def _ranking(text: str) -> tuple[str, ...]:
    """The options a text ranks, each once."""
    parts = (" ".join(part.split()) for part in re.split(r"[>,]", ballot(text)))
    return tuple(dict.fromkeys(part for part in parts if part))


def _elected(
    state: State,
    ballots: Mapping[str, tuple[str, ...]],
    answers: Mapping[str, str],
    method: str,
    weights: Mapping[str, float],
) -> Reduction:
    if not any(ballots.values()):
        return Reduction(None)
    weighed = [weights.get(name, weights.get(_declared(state, name), 1.0)) for name in ballots]
    count = RANKED.get(method, first_choices)
    scores = count(list(ballots.values()), weighed)
    whole = all(score.is_integer() for score in scores.values())
    votes = {
        option: int(score) if whole else score
        for option, score in sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    }
    most = max(votes.values())
    tied = sorted(vote for vote, score in votes.items() if score == most)
    data: dict[str, Any] = {"votes": votes}
    if method == "majority" and 2 * most <= sum(votes.values()):
        return Reduction(None, data)
    winner = tied[0]
    if len(tied) > 1:
        winner = tied[int(rng.uniform(state.seed, "vote", *tied) * len(tied))]
        data["tie"] = {"between": tied, "drawn": winner}
    return Reduction(answers[winner], data)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _declared(state: State, path: str) -> str:
    return state.member[_name(path)].name


@reducers.register("gate")
def gate(router: Member, k: Annotated[int, Field(ge=1)] = 1) -> Reducer:
    """The experts' answers to the turn rule ``gate``, voted on; the i-th named weighs 1/i."""

    def reduce(state: State) -> Reduction:
        experts = state.names_except((router,))
        spoken = max((step.superstep for n in experts if (step := state.last(n))), default=0)
        asked = min(k, len(experts))
        named = gated(state, router, spoken - asked, asked)
        weights = {name: 1 / place for place, name in enumerate(named, 1)}
        words = [step for name in reversed(named) if (step := state.last(name)) is not None]
        ballots = {_name(step.member): (ballot(step.output),) for step in words}
        answers = {ballot(step.output): step.output for step in words}
        elected = _elected(state, ballots, answers, "weighted", weights)
        return Reduction(elected.result, dict(elected.data) | {"gate": weights})

    return reduce


@reducers.register("judge")
def judge(member: Member) -> Reducer:
    """A member reads all last words and answers; its answer is the result."""
    return lambda state: Turn(member)


@reducers.register("best_of")
def best_of(verifier: Member) -> Reducer:
    """The last word that a member rates highest, from 0 to 9; the first spoken of equal ones.

    A rating is a choice, so no word that is rated can talk itself into the result.
    """

    def reduce(state: State) -> Reduction | tuple[Turn, ...]:
        words = [s for s in state.proposals() if _declared(state, s.member) != verifier]
        made = [s for s in state.choices_of(verifier) if s.superstep == state.superstep - 1]
        if not words:
            return Reduction(None)
        if len(made) < len(words):
            return tuple(
                Turn(verifier, SCORES, f"How good, from 0 to 9, is this: {step.output.strip()!r}?")
                for step in words
            )
        rated = [int(str(step.data["choice"])) for step in made]
        best = max(range(len(words)), key=lambda i: (rated[i], -i))
        by = {step.member: rating for step, rating in zip(words, rated, strict=True)}
        return Reduction(words[best].output, {"ratings": by})

    return reduce


@reducers.register("merge")
def merge(how: Literal["newest", "union"] = "newest") -> Reducer:
    """One board of all that was said as ``topic: text`` lines, topics in alphabetical order.

    Both ways are joins of a semilattice, so the order of turns in a superstep does not matter:
    ``newest`` keeps each topic's latest line (of one superstep, the last by name), ``union`` all.
    """

    def reduce(state: State) -> Reduction:
        board: dict[str, dict[str, None]] = {}
        steps = [step for name in state.names for step in state.said[name]]
        for step in sorted(steps, key=lambda step: (step.superstep, step.member)):
            for line in step.output.splitlines():
                topic, colon, text = line.partition(":")
                if colon and text.strip():
                    lines = board.setdefault(topic.strip(), {})
                    if how == "newest":
                        lines.clear()
                    lines[text.strip()] = None
        rows = [f"{topic}: {text}" for topic in sorted(board) for text in board[topic]]
        return Reduction("\n".join(rows) if rows else None)

    return reduce


@reducers.register("auction")
def auction(
    rule: Literal["first_price", "second_price", "vcg"] = "second_price",
    best: Best = "highest",
    but: Members = (),
) -> Reducer:
    """Members' last words are sealed bids; ties are broken by the run's seed.

    One good: the best number wins, at its own or the second best price, as ``NAME at PRICE``. Who
    names no number does not bid; a single bidder pays its own bid. ``vcg`` sells several goods: a
    bid is a JSON object from goods, or bundles such as ``bed+desk``, to what they are worth, and
    who gets one of its bundles pays what the others lose by that, as ``NAME gets GOODS at PRICE``.
    """
    if rule == "vcg" and best == "lowest":
        raise ConfigError("The rule auction(vcg) sells, so it knows no lowest bid: leave best out.")

    def reduce(state: State) -> Reduction:
        words = {
            name: step.output
            for name in state.names_except(but)
            if (step := state.last(name)) is not None
        }
        order = sorted(words, key=lambda name: rng.uniform(state.seed, "bid", name))
        return _bundles_sold(words, order) if rule == "vcg" else _sold(words, order, rule, best)

    return reduce


def _sold(words: Mapping[str, str], order: Sequence[str], rule: Rule, best: Best) -> Reduction:
    bids = {
        name: float(found[-1])
        for name, text in words.items()
        if (found := _NUMBER.findall(ballot(text).replace(",", "")))
    }
    if not bids:
        return Reduction(None)
    winner, price = sealed(bids, order, rule, best)
    data = {"bids": bids, "winner": winner, "price": price}
    return Reduction(f"{winner} at {price:g}", data)


def _bundles_sold(words: Mapping[str, str], order: Sequence[str]) -> Reduction:
    bids = {name: offers for name, text in words.items() if (offers := _offers(text))}
    goods = {good for offers in bids.values() for bundle in offers for good in bundle}
    if not goods or len(goods) > MOST_GOODS:
        return Reduction(None, {"goods": len(goods), "most": MOST_GOODS})
    sale = vcg(bids, order)
    sold = {name: "+".join(sorted(sale.goods[name])) for name in words if name in sale.goods}
    data = {"sold": sold, "prices": dict(sale.prices), "worth": sale.worth}
    lines = [f"{name} gets {bundle} at {sale.prices[name]:g}" for name, bundle in sold.items()]
    return Reduction("\n".join(lines), data)


def _offers(text: str) -> dict[frozenset[str], float]:
    """The bundles in a bid that somebody would give something for."""
    return {
        frozenset(part.strip() for part in bundle.split("+") if part.strip()): float(value)
        for bundle, value in json_in(text).items()
        if isinstance(value, int | float) and 0 < value < math.inf and bundle.strip(" +")
    }


_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@reducers.register("logit_mean")
def logit_mean() -> Reducer:
    """What the turn rule ``lockstep`` has written: all members' last words are the same."""
    return last()


@reducers.register("fedavg")
def fedavg(but: Members = (), folder: str = "") -> Reducer:
    """The mean of the members' weights, by how many examples each has seen.

    Weights travel as a JSON object ``{"weights": {name: [numbers]}, "examples": n}`` in a last
    word (``carry="weights"``); the result is such an object. Where there is a ``folder``, it holds
    adapters as safetensors files: a last word then is ``{"file": name, "examples": n}``, and so
    is the result, a new file there. No result where names or shapes differ between members.
    """
    from shoal.agents.averaging import averaged, averaged_files

    def reduce(state: State) -> Reduction:
        words = [
            (name, step.output)
            for name in state.names_except(but)
            if (step := state.last(name)) is not None
        ]
        return averaged_files(words, Path(folder)) if folder else averaged(words)

    return reduce
