"""The mechanisms of the table that need a function: a game, weights, a remote agent, a town."""

import json

from shoal.agents import Agent, Channel, Protocol, Remote, Script, Team
from shoal.agents.averaging import averaged
from shoal.agents.channels import sparse
from shoal.agents.payloads import json_in
from shoal.core.protocols import Sampling
from shoal.core.records import Message

SHORT = Sampling(max_tokens=12, temperature=0.9)


def referee(messages: tuple[Message, ...], seed: int) -> str:
    """Matching pennies: the first wins when both say the same, heads or tails."""
    said = [line for line in messages[-1].content.splitlines() if " said: " in line]
    coins = ["heads" if "heads" in line.casefold() else "tails" for line in said[-2:]]
    won = 1 if coins[0] == coins[1] else -1
    return json.dumps({"player-1": won, "player-2": -won})


def server(messages: tuple[Message, ...], seed: int) -> str:
    """Hands out zero at first, later the mean of what the clients sent."""
    lines = [line for line in messages[-1].content.splitlines() if " said: " in line]
    mean = averaged([(line.split()[0], line) for line in lines]).result
    return mean or json.dumps({"weights": {"slope": [0.0]}})


def client(slope: float, examples: int) -> Script:
    """Fits one weight to its own data, half of the way from where the server stands."""

    def step(messages: tuple[Message, ...], seed: int) -> str:
        (start,) = json_in(messages[-1].content)["weights"]["slope"]
        return json.dumps({"weights": {"slope": [(start + slope) / 2]}, "examples": examples})

    return Script(step)


def news(messages: tuple[Message, ...], seed: int) -> str:
    """What happens in town."""
    return ("It rains.", "The sun is out.")[seed % 2]


game = Team(
    "game",
    (
        Agent("player", "Say heads or tails.", copies=2, sampling=SHORT),
        Agent("referee", model=Script(referee)),
    ),
    Protocol("chain", "last", "rounds(3)", payoff="scored(referee)"),
    channels=(Channel("player", "referee"), Channel("referee", "player")),
    task="Matching pennies: player-1 wins when both say the same.",
)
federated = Team(
    "federated",
    (
        Agent("server", model=Script(server)),
        Agent("north", model=client(1.0, 30)),
        Agent("south", model=client(3.0, 10)),
    ),
    Protocol("on(server)", "fedavg(but=server)", "rounds(6)"),
    channels="star(server, carry=weights)",
)


def remote(url: str) -> Team:
    """A member that answers over A2A, between two that do not."""
    return Team(
        "remote",
        (
            Agent("asker", "Ask one question.", sampling=SHORT),
            Agent("far", model=Remote(url)),
            Agent("closer", "Sum up in one sentence.", sampling=SHORT),
        ),
        Protocol("chain", "last"),
        channels="chain",
    )


people = ("ann", "bob", "cem", "dot")
town = Team(
    "town",
    (
        *(Agent(name, "Say what you do today.", sampling=SHORT) for name in people),
        Agent("news", model=Script(news)),
    ),
    Protocol("all", "none", "rounds(2)"),
    channels=(*sparse(1)(people), Channel("news", people)),
)
