"""The task in LangGraph."""

from __future__ import annotations

import asyncio
import operator
from typing import Annotated, Any, TypedDict

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from task import EDITOR, PREAMBLE, READERS, TASK, TEMPERATURE, TOKENS, document


class State(TypedDict):
    """What nodes pass on."""

    notes: Annotated[list[str], operator.add]
    answer: str


def work(url: str, model: str) -> str:
    """The graph's answer."""
    llm = ChatOpenAI(
        model=model, base_url=url, api_key="none", temperature=TEMPERATURE, max_tokens=TOKENS
    )

    async def ask(role: str, notes: list[str]) -> str:
        system = SystemMessage(f"{PREAMBLE}\n\n{document()}")
        user = HumanMessage("\n\n".join([f"Task: {TASK}", *notes, role]))
        return str((await llm.ainvoke([system, user])).content)

    def reader(name: str, role: str) -> Any:
        async def node(state: State) -> dict[str, list[str]]:
            text = await ask(f"You are {name}. {role}", [])
            return {"notes": [f"{name} said: {text}"]}

        return node

    async def editor(state: State) -> dict[str, str]:
        return {"answer": await ask(f"You are editor. {EDITOR}", state["notes"])}

    graph = StateGraph(State)
    for name, role in READERS.items():
        graph.add_node(name, reader(name, role))
        graph.add_edge(START, name)
    graph.add_node("editor", editor)
    graph.add_edge(list(READERS), "editor")
    graph.add_edge("editor", END)
    state = asyncio.run(graph.compile().ainvoke({"notes": [], "answer": ""}))
    return str(state["answer"])
