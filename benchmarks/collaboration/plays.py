"""The same mechanisms in LangGraph and AutoGen: who heard and said what, for equal traces.

Each framework is used as its documentation shows: nodes and edges that return commands there,
group chats, swarms and graph flows here. Members are functions ``say(name, heard)`` of who they
are and what they hear, so a trace (who, what was heard, what was said) is equal only where order
and visibility are. What a member hears of the messages a framework hands it, its view says.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

from shoal.agents import TeamResult, load_team, run
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine

TEAMS = Path(__file__).parents[2] / "examples" / "teams"

Said = tuple[str, str]
View = Callable[[str, Sequence[Said]], list[Said]]
"""What a member hears of all that was said so far, oldest first."""
Turns = list[tuple[str, tuple[str, ...], str]]


def last_of(*names: str) -> View:
    """The last word of each of these members, in order of time, then of name."""

    def view(name: str, said: Sequence[Said]) -> list[Said]:
        last = {who: i for i, (who, _) in enumerate(said) if who in names}
        return [said[i] for i in sorted(last.values())]

    return view


def everything(name: str, said: Sequence[Said]) -> list[Said]:
    """All that was said."""
    return list(said)


@dataclass(frozen=True, slots=True)
class Play:
    """A mechanism with its script: what members say, whom the chooser names, who hears what."""

    row: str
    said: dict[str, tuple[str, ...]]
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)


PLAYS = {
    play.row: play
    for play in (
        Play(
            "02-pipeline",
            {"planner": ("points",), "writer": ("text",), "tester": ("checked",)},
            views={"planner": last_of(), "writer": last_of("planner"), "tester": last_of("writer")},
        ),
        Play(
            "05-debate",
            {"ann": ("yes", "yes"), "bob": ("no", "yes"), "cem": ("no", "no")},
            views=dict.fromkeys(("ann", "bob", "cem"), last_of("ann", "bob", "cem")),
        ),
        Play(
            "10-group-chat",
            {"poet": ("Luna",), "child": ("nice", "Luna!")},
            {"host": ("poet", "child", "child")},
            dict.fromkeys(("poet", "child"), everything),
        ),
        Play(
            "11-supervisor",
            {"hub": ("All in all.",), "cook": ("honey", "wax"), "farmer": ("fruit",)},
            {"hub": ("cook", "farmer", "cook", "finish")},
            {"hub": last_of("cook", "farmer"), "cook": last_of("hub"), "farmer": last_of("hub")},
        ),
        Play(
            "12-handoff",
            {"desk": ("a payment",), "billing": ("refunded",), "travel": ()},
            {"desk": ("billing",), "billing": ("finish",)},
            dict.fromkeys(("desk", "billing", "travel"), everything),
        ),
        Play(
            "23-graph-with-loop",
            {
                "writer": ("Snow", "Snow at last"),
                "critic": ("longer", "ok: Snow at last"),
                "press": ("SNOW AT LAST",),
            },
            views={
                "writer": last_of("critic"), "critic": last_of("writer"),
                "press": last_of("critic"),
            },
        ),
    )
}  # fmt: skip


class Cast:
    """Hands out what members say and choose, and writes down what they heard."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.turns: Turns = []
        self._words = {name: iter(said) for name, said in play.said.items()}
        self._choices = {name: iter(made) for name, made in play.choices.items()}

    def say(self, name: str, said: Sequence[Said]) -> str:
        """A member's next words; what it heard of ``said`` is kept."""
        heard = tuple(text for _, text in self.play.views[name](name, said))
        text = self.words(name)
        self.turns.append((name, heard, text))
        return text

    def words(self, name: str) -> str:
        """A member's next words."""
        return next(self._words[name])

    def choose(self, name: str) -> str:
        """A member's next choice."""
        return next(self._choices[name])


def in_order(turns: Turns, together: int = 1) -> Turns:
    """Turns taken at the same time have no order: sort each such group by name."""
    groups = [turns[i : i + together] for i in range(0, len(turns), together)]
    return [turn for group in groups for turn in sorted(group)]


# -- shoal ----------------------------------------------------------------------------------


async def with_shoal(play: Play) -> Turns:
    """The row's team file, its members scripted."""
    script = Cast(play)
    team = load_team(TEAMS / f"{play.row}.toml")

    def answer(messages: tuple[Message, ...], seed: int) -> str:
        tail = messages[-1].content.rpartition("You are ")[2]
        name = tail.split(".")[0]
        if "Answer with one of these words only" in tail:
            return script.choose(name)
        return script.words(name)

    result = await run(team, engine=ScriptedEngine(answer))
    return trace_of(result)


def trace_of(result: TeamResult) -> Turns:
    """Who heard and said what, without choices, which are no messages."""
    said = {step.key: step.output for step in result.episode.steps}
    return [
        (step.member, tuple(said[key] for key in step.seen), step.output)
        for step in result.episode.steps
        if "choice" not in step.data
    ]


# -- LangGraph ------------------------------------------------------------------------------


class State(TypedDict):
    """What LangGraph passes between nodes."""

    said: Annotated[list[Said], operator.add]


def with_langgraph(play: Play) -> Turns:
    """The row as a state graph."""
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Command

    script = Cast(play)
    graph = StateGraph(State)

    def speaker(name: str) -> Callable[[State], Any]:
        return lambda state: {"said": [(name, script.say(name, state["said"]))]}

    def hands_over(name: str, to: Callable[[], str]) -> Callable[[State], Any]:
        def node(state: State) -> Any:
            said = [(name, script.say(name, state["said"]))]
            goto = to()
            return Command(update={"said": said}, goto=END if goto == "finish" else goto)

        return node

    names = list(play.said)
    if play.row == "02-pipeline":
        for name in names:
            graph.add_node(name, speaker(name))
        for a, b in zip([START, *names], [*names, END], strict=True):
            graph.add_edge(a, b)
    elif play.row == "05-debate":
        for round_ in (1, 2):
            for name in names:
                graph.add_node(f"{name}{round_}", speaker(name))
        for name in names:
            graph.add_edge(START, f"{name}1")
            graph.add_edge([f"{other}1" for other in names], f"{name}2")
            graph.add_edge(f"{name}2", END)
    elif play.row == "10-group-chat":
        left = iter([*play.choices["host"], "finish"])
        graph.add_node("host", lambda state: Command(goto=_goto(next(left), END)))
        for name in names:
            graph.add_node(name, speaker(name))
            graph.add_edge(name, "host")
        graph.add_edge(START, "host")
    elif play.row == "11-supervisor":

        def hub(state: State) -> Any:
            chosen = script.choose("hub")
            if chosen != "finish":
                return Command(goto=chosen)
            return {"said": [("hub", script.say("hub", state["said"]))]}

        graph.add_node("hub", hub)
        for name in names[1:]:
            graph.add_node(name, speaker(name))
            graph.add_edge(name, "hub")
        graph.add_edge(START, "hub")
    elif play.row == "12-handoff":
        for name in names:
            graph.add_node(name, hands_over(name, lambda name=name: script.choose(name)))
        graph.add_edge(START, "desk")
    else:
        for name in names:
            graph.add_node(name, speaker(name))
        graph.add_edge(START, "writer")
        graph.add_edge("writer", "critic")
        graph.add_conditional_edges(
            "critic", lambda state: "press" if "ok" in state["said"][-1][1] else "writer"
        )
        graph.add_edge("press", END)
    graph.compile().invoke({"said": []})
    return in_order(script.turns, 3 if play.row == "05-debate" else 1)


def _goto(name: str, end: str) -> str:
    return end if name == "finish" else name


# -- AutoGen --------------------------------------------------------------------------------


def autogen_agent(name: str, act: Callable[[list[Said]], Any]) -> Any:
    """A chat agent that keeps all it is handed and answers with what ``act`` makes of it."""
    from autogen_agentchat.agents import BaseChatAgent
    from autogen_agentchat.base import Response
    from autogen_agentchat.messages import TextMessage

    class Member(BaseChatAgent):
        def __init__(self) -> None:
            super().__init__(name, description=name)
            self.said: list[Said] = []

        @property
        def produced_message_types(self) -> Any:
            return (TextMessage,)

        async def on_messages(self, messages: Any, cancellation_token: Any) -> Any:
            self.said += [(m.source, m.content) for m in messages if m.source != "user"]
            message = act(self.said)
            self.said.append((name, message.content))
            return Response(chat_message=message)

        async def on_reset(self, cancellation_token: Any) -> None:
            self.said.clear()

    return Member()


async def with_autogen(play: Play) -> Turns:
    """The row as a group chat, a swarm or a graph flow."""
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.messages import HandoffMessage, TextMessage
    from autogen_agentchat.teams import DiGraphBuilder, GraphFlow, SelectorGroupChat, Swarm

    script = Cast(play)

    def text(name: str) -> Callable[[list[Said]], Any]:
        return lambda said: TextMessage(content=script.say(name, said), source=name)

    names = list(play.said)
    team: Any
    if play.row == "02-pipeline":
        members = {name: autogen_agent(name, text(name)) for name in names}
        builder = DiGraphBuilder()
        for name in names:
            builder.add_node(members[name])
        for a, b in itertools.pairwise(names):
            builder.add_edge(members[a], members[b])
        team = GraphFlow(list(members.values()), builder.build())
    elif play.row == "05-debate":
        team = _debate(names, script)
    elif play.row in ("10-group-chat", "11-supervisor"):
        chooser = "host" if play.row == "10-group-chat" else "hub"
        speakers = [choice if choice != "finish" else chooser for choice in play.choices[chooser]]
        order = iter(speakers)
        team = SelectorGroupChat(
            [autogen_agent(name, text(name)) for name in names],
            model_client=_NoModel(),
            selector_func=lambda messages: next(order),
            termination_condition=MaxMessageTermination(len(speakers) + 1),
        )
    elif play.row == "12-handoff":

        def handing(name: str) -> Callable[[list[Said]], Any]:
            def act(said: list[Said]) -> Any:
                words, target = script.say(name, said), script.choose(name)
                if target == "finish":
                    return TextMessage(content=words, source=name)
                return HandoffMessage(content=words, source=name, target=target)

            return act

        members = {}
        for name in names:
            members[name] = autogen_agent(name, handing(name))
            members[name].__class__.produced_message_types = property(
                lambda self: (TextMessage, HandoffMessage)
            )
        team = Swarm(
            list(members.values()),
            termination_condition=MaxMessageTermination(len(play.choices) + 1),
        )
    else:
        members = {name: autogen_agent(name, text(name)) for name in names}
        builder = DiGraphBuilder()
        for name in names:
            builder.add_node(members[name])
        builder.add_edge(members["writer"], members["critic"])
        builder.add_edge(
            members["critic"], members["writer"], condition=lambda m: "ok" not in m.to_model_text()
        )
        builder.add_edge(
            members["critic"], members["press"], condition=lambda m: "ok" in m.to_model_text()
        )
        builder.set_entry_point(members["writer"])
        team = GraphFlow(list(members.values()), builder.build(), max_turns=9)
    await team.run(task="Go.")
    return in_order(script.turns, 3 if play.row == "05-debate" else 1)


def _debate(names: list[str], script: Cast) -> Any:
    """Two layers of a graph flow: its members run at once within a layer."""
    from autogen_agentchat.messages import TextMessage
    from autogen_agentchat.teams import DiGraphBuilder, GraphFlow

    def act(name: str, round_: int) -> Callable[[list[Said]], Any]:
        def words(said: list[Said]) -> Any:
            heard = sorted((who.rpartition("_")[0], text) for who, text in said)
            return TextMessage(content=script.say(name, heard), source=f"{name}_{round_}")

        return words

    members = {
        f"{name}_{round_}": autogen_agent(f"{name}_{round_}", act(name, round_))
        for round_ in (1, 2)
        for name in names
    }
    builder = DiGraphBuilder()
    for member in members.values():
        builder.add_node(member)
    for a in names:
        for b in names:
            builder.add_edge(members[f"{a}_1"], members[f"{b}_2"])
    return GraphFlow(list(members.values()), builder.build())


def _NoModel() -> Any:  # noqa: N802
    """A selector group chat wants a model client, also where a function selects."""
    from autogen_core.models import ChatCompletionClient

    stub = dict.fromkeys(ChatCompletionClient.__abstractmethods__)
    return type("NoModel", (ChatCompletionClient,), stub)()
