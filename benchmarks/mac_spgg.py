"""Moving in sequence, with a bar, a synergy and a share, makes contributing the only equilibrium.

    shoal reproduce mac-spgg [--smoke]

The game without any of that as the baseline; each part left out; all moving at once; what
Theorem 2 says of welfare; contributions that agents learn; a small model alone, by vote, by debate
and in sequence, with settings that policies learnt (benchmarks/deciding). "Everyone Contributes!
Incentivizing Strategic Cooperation in Multi-LLM Systems via Sequential Public Goods Games"
(arXiv 2508.02076).
"""

from __future__ import annotations

from deciding import equilibria, learning, random_games, sequences, welfare
from shoal.core.claims import Bench


def run(bench: Bench) -> None:
    """Solve the games of the table, and then many others."""
    bench.workload = (
        "Three agents contribute 0.10 to 1.00 in order, in steps of 0.05, at a cost of c + "
        "0.05 c². All pure equilibria are found by backward induction, ties included. The "
        "baseline is the public goods game without synergy and penalty. Checked against plain "
        "recursion on random games of 2 to 4 agents; conditions, on random games of 2 to 5. The "
        "reward is put together from the parts the paper describes. Learning: groups of three "
        "actor-critics, 200 epochs of 50 episodes. Models: SmolLM2-135M thrice, each with five "
        "worked examples of its own, the weakest first; sums of three one-digit numbers from "
        "reasoning-gym, examples, sums to learn from and sums to be held to having none in common. "
        "Every arm may generate 200 tokens a sum, shared equally by its calls, and 50 a call. "
        "Order, what is heard of others, fixed settings and the game (bar, cost of tokens, share) "
        "are chosen on the sums to learn from; the published game is played, too. The theorem is "
        "about scalar contributions: of models it promises nothing."
    )
    equilibria.table(bench)
    equilibria.at_once(bench)
    equilibria.finer(bench)
    random_games.recursion(bench)
    random_games.proofs(bench)
    welfare.synergy(bench)
    welfare.theorem_2(bench)
    equilibria.scale(bench)
    learning.learnt_contributions(bench)
    sequences.with_models(bench)
