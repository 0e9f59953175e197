"""What a job asks for, line by line, and what comes of it; formats are the callers' business."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.core.errors import ShoalError
from shoal.core.ids import new_id
from shoal.core.protocols import Completion, Prompt, Request, Score


@dataclass(frozen=True, slots=True)
class Response:
    """An answer as HTTP would give it."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests to be answered as one group: the choices of a prompt, or several prompts."""

    requests: tuple[Request, ...]
    answer: Callable[[Sequence[Completion]], Response]


@dataclass(frozen=True, slots=True)
class Scored:
    """Texts to be scored as continuations of one prefix."""

    prefix: Prompt
    candidates: tuple[str, ...]
    answer: Callable[[Sequence[Score]], Response]
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One line of a job; ``failed`` makes an answer of an error that concerns this line alone."""

    custom_id: str
    work: Asked | Scored
    failed: Callable[[ShoalError], Response]

    @property
    def requests(self) -> tuple[Request, ...]:
        """What is to be generated; nothing where texts are scored."""
        return self.work.requests if isinstance(self.work, Asked) else ()


def result_line(task: Task, response: Response) -> dict[str, Any]:
    """A line of output, as OpenAI's batches have it."""
    return {
        "id": f"batch_req_{new_id()}",
        "custom_id": task.custom_id,
        "response": {
            "status_code": response.status,
            "request_id": f"req_{new_id()}",
            "body": response.body,
        },
        "error": None,
    }
