"""Parts of a reward for tool calls: pure functions of an answer and of what was wanted.

ToolRL's terms (arXiv 2504.13958, section 3.3): the multiset Jaccard index of names, for every pair
of matched calls the Jaccard index of parameter names, and the number of right values. A correctness
is their sum over the most it could be, so it lies in [0, 1] and its scale is the schedule's.

Departures: arguments that may be left out count only where they are given, so that leaving them out
costs nothing; two empty sets of parameters are equal (1, not 0/0). Sums are exact fractions,
because groups are called equal by exact equality of their rewards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from shoal.envs.calls.answers import Answer, Call
from shoal.envs.calls.dialects import Dialect
from shoal.envs.calls.task import exact
from shoal.envs.calls.values import Equality
from shoal.envs.calls.wanted import Wanted, WantedCall
from shoal.training.rewards.matching import Matcher


@dataclass(frozen=True, slots=True)
class Pair:
    """A wanted call and the one it was matched with, if any.

    parameter  Jaccard index of their parameter names
    value      how many values are right; ``values`` is how many there could be
    """

    parameter: Fraction = Fraction(0)
    value: int = 0
    values: int = 0
    same_names: bool = False
    same: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer beside what was wanted.

    format   well-formed: the wanted blocks, each once and nothing else
    exact    well-formed, and exactly the wanted calls
    name     multiset Jaccard index of the tools' names
    pairs    one for every wanted call
    words    of thinking
    """

    format: bool
    exact: bool
    name: Fraction
    names_equal: bool
    pairs: tuple[Pair, ...]
    calls: int
    wanted: int
    words: int
    error: str = ""

    @property
    def marks(self) -> dict[str, float]:
        """Accuracies in [0, 1], to be told beside a reward."""
        told = {"format": float(self.format), "exact": float(self.exact)}
        if not self.wanted:
            return {**told, "irrelevance": float(not self.calls and not self.error)}
        return {
            **told,
            "name": float(self.name),
            "parameter": parameter(self),
            "value": value(self),
            "called_exactly": float(self.exact),
        }


def judge(
    answer: Answer, wanted: Wanted, dialect: Dialect, matcher: Matcher, equality: Equality
) -> Judged:
    """Hold an answer against what was wanted; nothing here depends on training."""
    calls = answer.calls
    table = [
        [_pair(one, call, equality) if call.name == one.name else None for call in calls]
        for one in wanted.calls
    ]
    chosen = matcher(
        [[None if pair is None else pair.parameter + pair.value for pair in row] for row in table]
    )
    pairs = tuple(
        (row[place] if place is not None else None) or Pair(values=len(one.keys(())))
        for one, row, place in zip(wanted.calls, table, chosen, strict=True)
    )
    ours, theirs = Counter(one.name for one in calls), Counter(one.name for one in wanted.calls)
    common, union = (ours & theirs).total(), (ours | theirs).total()
    return Judged(
        format=dialect.well_formed(answer, wanted.blocks),
        exact=exact(answer, wanted, dialect, equality),
        name=Fraction(common, union) if union else Fraction(1),
        names_equal=ours == theirs,
        pairs=pairs,
        calls=len(calls),
        wanted=len(wanted.calls),
        words=len(answer.thought.split()),
        error=answer.error,
    )


def _pair(one: WantedCall, call: Call, equality: Equality) -> Pair:
    given = call.arguments
    keys = one.keys(given)
    extra = one.superfluous(given, equality)
    common, union = len(keys & given.keys()), len(keys) + len(extra)
    value = sum(key in given and one.right(key, given[key], equality) for key in keys)
    return Pair(
        parameter=Fraction(common, union) if union else Fraction(1),
        value=value,
        values=len(keys),
        same_names=common == union,
        same=common == union and value == len(keys),
    )


# -- parts, each in [0, 1] ------------------------------------------------------------------


def well_formed(judged: Judged) -> float:
    """R_f: the right blocks in the right order, and nothing else."""
    return float(judged.format)


def original(judged: Judged) -> float:
    """S / S_max, S = r_name + Σ (r_param + r_value), S_max = 1 + |G| + Σ |keys|."""
    pairs = judged.pairs
    found = judged.name + sum(pair.parameter + pair.value for pair in pairs)
    return float(found / (1 + len(pairs) + sum(pair.values for pair in pairs)))


def finegrained(judged: Judged) -> float:
    """The same with names of tools and sets of parameters that must be equal."""
    pairs = judged.pairs
    found = judged.names_equal + sum(pair.same_names + pair.value for pair in pairs)
    return found / (1 + len(pairs) + sum(pair.values for pair in pairs))


def intermediate(judged: Judged) -> float:
    """r_name, and for every wanted call whether all its arguments are right; S_max = 1 + |G|."""
    found = judged.name + sum(pair.same for pair in judged.pairs)
    return float(found / (1 + len(judged.pairs)))


def coarse(judged: Judged) -> float:
    """All or nothing: the wanted calls and no others, format aside."""
    return float(judged.names_equal and all(pair.same for pair in judged.pairs))


def exactly(judged: Judged) -> float:
    """All or nothing, format included."""
    return float(judged.exact)


def name(judged: Judged) -> float:
    """The multiset Jaccard index of names alone."""
    return float(judged.name)


def parameter(judged: Judged) -> float:
    """Mean Jaccard index of parameter names over the wanted calls."""
    return float(sum(pair.parameter for pair in judged.pairs) / max(len(judged.pairs), 1))


def value(judged: Judged) -> float:
    """Share of wanted values that are right."""
    values = sum(pair.values for pair in judged.pairs)
    return sum(pair.value for pair in judged.pairs) / values if values else 1.0


CORRECTNESS: Mapping[str, Callable[[Judged], float]] = {
    "original": original,
    "finegrained": finegrained,
    "intermediate": intermediate,
    "coarse": coarse,
    "name": name,
    "parameter": parameter,
    "value": value,
}
"""What is about calls: an answer that cannot be read has none of it, and where no call was wanted
it is for the reward to say what not calling is worth."""
