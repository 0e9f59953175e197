"""The cost of a turn: a ring of null members in shoal, LangGraph and AutoGen.

Members speak one after the other and say the same two letters, so what is timed is the framework.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypedDict

from collaboration.plays import autogen_agent
from shoal.agents import Agent, Protocol, Script, Team, run
from shoal.engine.scripted import ScriptedEngine


def ring_of_shoal(size: int, turns: int) -> Callable[[], Any]:
    """A ring of null members that speak one after the other, as a callable to be timed."""
    script = Script(lambda messages, seed: "ok")
    names = [f"m{i:04}" for i in range(size)]
    team = Team(
        "ring",
        tuple(Agent(name, model=script) for name in names),
        Protocol("round_robin", "last", f"turns({turns})"),
        channels="ring",
    )
    engine = ScriptedEngine("ok")

    def work() -> Any:
        result = asyncio.run(run(team, "Go.", engine=engine))
        assert len(result.episode.steps) == turns
        return result

    return work


def ring_of_langgraph(size: int, turns: int) -> Callable[[], Any]:
    """The same as a state graph whose state keeps the last message."""
    from langgraph.graph import END, START, StateGraph

    class Last(TypedDict):
        text: str
        turns: int

    graph = StateGraph(Last)
    for i in range(size):
        graph.add_node(f"m{i}", lambda state: {"text": "ok", "turns": state["turns"] + 1})
    graph.add_edge(START, "m0")
    for i in range(size):
        after = f"m{(i + 1) % size}"
        graph.add_conditional_edges(
            f"m{i}", lambda state, after=after: END if state["turns"] >= turns else after
        )
    compiled = graph.compile()

    def work() -> Any:
        state = asyncio.run(
            compiled.ainvoke({"text": "Go.", "turns": 0}, {"recursion_limit": turns + 5})
        )
        assert state["turns"] == turns
        return state

    return work


def ring_of_autogen(size: int, turns: int) -> Callable[[], Any]:
    """The same as a round-robin group chat."""
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.messages import TextMessage
    from autogen_agentchat.teams import RoundRobinGroupChat

    def work() -> Any:
        def member(name: str) -> Any:
            return autogen_agent(name, lambda said: TextMessage(content="ok", source=name))

        team = RoundRobinGroupChat(
            [member(f"m{i}") for i in range(size)],
            termination_condition=MaxMessageTermination(turns + 1),
        )
        result = asyncio.run(team.run(task="Go."))
        assert len(result.messages) == turns + 1
        return result

    return work


RINGS = {
    "shoal": ring_of_shoal,
    "langgraph": ring_of_langgraph,
    "autogen": ring_of_autogen,
}
