"""Whether the constants of a contribution game make contributing pay, checked before anybody plays.

Sufficient conditions in the spirit of Theorem 1 of "Everyone Contributes!" (arXiv 2508.02076),
each proved by backward induction for every pure SPNE, and the solved game beside them:

- P > kappa(high) - kappa(low): who can fill the gap does, as it costs less than the penalty. By
  induction the bar is reached wherever those still to move can reach it.
- rho/n + gamma H >= kappa'(high) for the least H the last agent can meet once the bar is reached,
  max(low, (B - high) / (n - 1)): the last agent gives all it can.
- B > (n - 1) high + low + 0.05, with the first: no total that reaches the bar leaves room to ride
  free.

Uniqueness is not among them: ties are found by solving.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shoal.mechanisms.goods.contribution_game import FREE_RIDING, ROUNDING, Game
from shoal.mechanisms.goods.subgame_perfect import STEP, Equilibrium, sequential, simultaneous


@dataclass(frozen=True, slots=True)
class Condition:
    """A sufficient condition: what follows from it, and ``left``, which must reach ``right``."""

    name: str
    left: float
    right: float
    holds: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Alignment:
    """What is known of a game.

    conditions    what is proved of it, or fails to be
    equilibria    the outcomes of all pure SPNE on the grid
    simultaneous  all pure Nash equilibria on the grid, if nobody saw another's contribution
    objections    a sentence for each reason why the game is not aligned
    warnings      a sentence for each thing that is odd about it
    """

    game: Game
    step: float
    conditions: tuple[Condition, ...]
    equilibria: tuple[Equilibrium, ...]
    simultaneous: tuple[Equilibrium, ...]
    objections: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def aligned(self) -> bool:
        """One equilibrium, the bar reached, nobody riding free."""
        return not self.objections


def check_game(game: Game, *, step: float = STEP) -> Alignment:
    """Solve a game, and say in sentences whether and why its constants work.

    Raises :class:`~shoal.core.errors.ConfigError` as
    :func:`~shoal.mechanisms.goods.subgame_perfect.sequential` does.
    """
    equilibria = sequential(game, step=step)
    return Alignment(
        game=game,
        step=step,
        conditions=conditions(game),
        equilibria=equilibria,
        simultaneous=simultaneous(game, step=step),
        objections=tuple(_objections(game, equilibria)),
        warnings=tuple(_warnings(game)),
    )


def conditions(game: Game) -> tuple[Condition, ...]:
    """The three sufficient conditions; the third holds only where the first does."""
    n, low, high = game.agents, game.low, game.high
    saved = float(game.cost(high) - game.cost(low))
    filled = game.penalty > saved + ROUNDING
    synergy = max(low, (game.bar - high) / (n - 1)) if filled else low
    pull, steepest = game.rho / n + game.gamma * synergy, game.cost.marginal(high)
    full = pull >= steepest
    room = (n - 1) * high + low + FREE_RIDING
    tight = game.bar > room + 2 * ROUNDING  # of the total, and of what riding free is
    return (
        Condition(
            "filling the gap pays",
            game.penalty,
            saved,
            filled,
            f"The penalty {game.penalty:g} {'exceeds' if filled else 'does not exceed'} the "
            f"{saved:.4g} that the least contribution saves over the most: the bar is "
            f"{'reached in every equilibrium' if filled else 'not sure to be reached'}.",
        ),
        Condition(
            "the last agent gives all",
            pull,
            steepest,
            full,
            f"Share and synergy give the last agent at least {pull:.4g} for one unit more, "
            f"{'no less' if full else 'less'} than its marginal cost of {steepest:.4g} at most: it "
            f"{'contributes all it can' if full else 'may hold back'}.",
        ),
        Condition(
            "the bar leaves no room to ride free",
            game.bar,
            room,
            filled and tight,
            f"The bar {game.bar:g} is {'above' if tight else 'not above'} the {room:.4g} that is "
            "reached with one agent riding free and all others giving all they can: "
            + (
                "nobody rides free."
                if filled and tight
                else "nobody would ride free if it were sure to be reached."
                if tight
                else "one of them may, unless synergy pulls it."
            ),
        ),
    )


def _objections(game: Game, equilibria: tuple[Equilibrium, ...]) -> Iterator[str]:
    if len(equilibria) > 1:
        yield (
            f"There are {len(equilibria)} equilibria on the grid, and which one is played hangs "
            "on how ties are broken."
        )
    missed = [one for one in equilibria if not one.reaches_bar]
    if missed:
        yield (
            f"The bar of {game.bar:g} is missed by {game.bar - missed[0].total:.4g} in the "
            f"equilibrium ({_row(missed[0])}): a penalty above "
            f"{float(game.cost(game.high) - game.cost(game.low)):.4g} is sure to prevent that."
        )
    riding = [one for one in equilibria if one.free_riders]
    if riding:
        who = ", ".join(str(i + 1) for i in riding[0].free_riders)
        floor = (game.agents - 1) * game.high + game.low + FREE_RIDING
        yield (
            f"In the equilibrium ({_row(riding[0])}) agent {who} of {game.agents} rides free: "
            f"raise the bar above {floor:.4g} with a penalty that is felt, or the synergy."
        )


def _warnings(game: Game) -> Iterator[str]:
    n = game.agents
    if game.rho >= n:
        yield (
            f"rho = {game.rho:g} is not below the {n} agents: what one contributes comes back to "
            "it whole, so this is no dilemma."
        )
    if game.rho <= game.cost.marginal(game.low) and game.gamma == 0:
        yield (
            f"One unit contributed costs {game.cost.marginal(game.low):.4g} or more and yields "
            f"rho = {game.rho:g} for all together: contributing is a loss for the group."
        )


def _row(one: Equilibrium) -> str:
    return ", ".join(f"{c:.4g}" for c in one.contributions)
