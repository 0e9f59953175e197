"""The task in AutoGen."""

from __future__ import annotations

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow
from autogen_core.models import ModelFamily, ModelInfo
from autogen_ext.models.openai import OpenAIChatCompletionClient
from task import EDITOR, PREAMBLE, READERS, TASK, TEMPERATURE, TOKENS, document


async def flow(url: str, model: str) -> str:
    """The last message of the graph flow."""
    client = OpenAIChatCompletionClient(
        model=model,
        base_url=url,
        api_key="none",
        temperature=TEMPERATURE,
        max_tokens=TOKENS,
        model_info=ModelInfo(
            vision=False,
            function_calling=False,
            json_output=False,
            structured_output=False,
            family=ModelFamily.UNKNOWN,
        ),
    )

    def agent(name: str, role: str) -> AssistantAgent:
        system = f"{PREAMBLE}\n\n{document()}\n\nYou are {name}. {role}"
        return AssistantAgent(name, model_client=client, system_message=system)

    readers = [agent(name, role) for name, role in READERS.items()]
    editor = agent("editor", EDITOR)
    builder = DiGraphBuilder()
    builder.add_node(editor)
    for reader in readers:
        builder.add_node(reader)
        builder.add_edge(reader, editor)
    team = GraphFlow([*readers, editor], graph=builder.build())
    result = await team.run(task=f"Task: {TASK}")
    await client.close()
    said = [message for message in result.messages if message.source == "editor"]
    return str(said[-1].to_text())


def work(url: str, model: str) -> str:
    """The graph flow's answer."""
    return asyncio.run(flow(url, model))
