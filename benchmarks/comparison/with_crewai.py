"""The task in CrewAI."""

from __future__ import annotations

from crewai import LLM, Agent, Crew, Process, Task
from task import EDITOR, PREAMBLE, READERS, TASK, TEMPERATURE, TOKENS, document


def work(url: str, model: str) -> str:
    """The crew's answer."""
    llm = LLM(
        model=f"openai/{model}",
        base_url=url,
        api_key="none",
        temperature=TEMPERATURE,
        max_tokens=TOKENS,
    )

    def agent(name: str, role: str) -> Agent:
        return Agent(
            role=name, goal=role, backstory=f"{PREAMBLE}\n\n{document()}", llm=llm, max_iter=1
        )

    notes = [
        Task(
            description=f"Task: {TASK}",
            expected_output=role,
            agent=agent(name, role),
            async_execution=True,
        )
        for name, role in READERS.items()
    ]
    final = Task(
        description=f"Task: {TASK}",
        expected_output=EDITOR,
        agent=agent("editor", EDITOR),
        context=notes,
    )
    crew = Crew(
        agents=[task.agent for task in (*notes, final)],
        tasks=[*notes, final],
        process=Process.sequential,
    )
    return str(crew.kickoff().raw)
