"""Counting votes: pure functions from ballots to scores. Ties are left to who asks.

A ballot ranks options, best first, and may leave some out; an option that a ballot leaves out
stands below all that it names. Weights default to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Ballots = Sequence[tuple[str, ...]]
Weights = Sequence[float]


def options_of(ballots: Ballots) -> tuple[str, ...]:
    """All options that a ballot names, in alphabetical order."""
    return tuple(sorted({option for ballot in ballots for option in ballot}))


def first_choices(ballots: Ballots, weights: Weights) -> dict[str, float]:
    """The weight of the ballots that rank each option first."""
    scores = dict.fromkeys(options_of(ballots), 0.0)
    for ballot, weight in zip(ballots, weights, strict=True):
        if ballot:
            scores[ballot[0]] += weight
    return scores


def approval(ballots: Ballots, weights: Weights) -> dict[str, float]:
    """The weight of the ballots that name each option at all."""
    scores = dict.fromkeys(options_of(ballots), 0.0)
    for ballot, weight in zip(ballots, weights, strict=True):
        for option in set(ballot):
            scores[option] += weight
    return scores


def borda(ballots: Ballots, weights: Weights) -> dict[str, float]:
    """n-1 points for the first of n options, n-2 for the second, and so on; 0 if left out."""
    options = options_of(ballots)
    scores = dict.fromkeys(options, 0.0)
    for ballot, weight in zip(ballots, weights, strict=True):
        for place, option in enumerate(ballot):
            scores[option] += weight * (len(options) - 1 - place)
    return scores


def instant_runoff(ballots: Ballots, weights: Weights) -> dict[str, float]:
    """In which round each option falls (the last round's winners highest).

    The options with the fewest first choices among those left fall together; when all that are
    left have equally many, they are tied.
    """
    standing = set(options_of(ballots))
    scores: dict[str, float] = {}
    place = 0.0
    while standing:
        left = [tuple(option for option in ballot if option in standing) for ballot in ballots]
        firsts = first_choices(left, weights)
        counts = {option: firsts.get(option, 0.0) for option in standing}
        fewest = min(counts.values())
        fall = {option for option, count in counts.items() if count == fewest}
        scores |= dict.fromkeys(fall, place)
        standing -= fall
        place += 1
    return scores


def condorcet(ballots: Ballots, weights: Weights) -> dict[str, float]:
    """Copeland's count: duels won minus duels lost, so a Condorcet winner has the most."""
    options = options_of(ballots)
    scores = dict.fromkeys(options, 0.0)
    ranks = [{option: place for place, option in enumerate(ballot)} for ballot in ballots]
    for i, a in enumerate(options):
        for b in options[i + 1 :]:
            margin = 0.0
            for rank, weight in zip(ranks, weights, strict=True):
                first, second = rank.get(a, len(options)), rank.get(b, len(options))
                margin += weight * ((first < second) - (first > second))
            if margin:
                winner, loser = (a, b) if margin > 0 else (b, a)
                scores[winner] += 1
                scores[loser] -= 1
    return scores


RANKED: Mapping[str, Callable[[Ballots, Weights], dict[str, float]]] = {
    "approval": approval,
    "borda": borda,
    "irv": instant_runoff,
    "condorcet": condorcet,
}
