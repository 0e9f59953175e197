"""What rooms ask of each other. An engine may be local, remote or scripted: same protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shoal.core.ids import new_id
from shoal.core.records import Finish, Message, ToolCall, ToolSpec, Usage


@dataclass(frozen=True, slots=True)
class Segment:
    """A named piece of a raw prompt: text, or token ids where the caller has them already."""

    text: str = ""
    tokens: tuple[int, ...] | None = None
    name: str = ""


Prompt = tuple[Message, ...] | tuple[Segment, ...]
"""Messages go through the model's chat template; segments are joined as they are."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    ``temperature`` 0 is greedy. Penalties act on logits before temperature, truncation
    (``top_k``, ``top_p``, ``min_p``) after it. ``repetition_penalty`` divides what prompt or
    answer hold, ``presence_penalty`` is taken off what the answer holds. ``logprobs`` asks for
    that many alternatives per token (0: the chosen token only; None: nothing); they are taken
    after temperature and before truncation. Draws depend on the seed and the place in the answer
    alone, never on who else is in the batch.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_tokens", 0, float("inf")),
            ("temperature", 0, 100),
            ("top_p", 0, 1),
            ("top_k", 0, float("inf")),
            ("min_p", 0, 1),
            ("repetition_penalty", 1e-3, 100),
            ("presence_penalty", -2, 2),
            ("min_tokens", 0, float("inf")),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, but must lie between {low} and {high}.")


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on the answer: a JSON schema (as text), a regex, a Lark grammar or choices."""

    kind: Literal["json_schema", "regex", "lark", "choice"]
    value: str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered. Caches are never shared between different ``salt`` values.

    ``tool_choice`` ("auto", "none", "required" or a tool's name) is for endpoints that call tools
    by themselves; elsewhere a grammar says which calls may be written. ``reuse`` "approx" allows
    an engine to move cache of equal text here from other contexts, where it can; "own" only what
    was computed under the same salt. ``placeholders`` are named texts in the messages, in their
    order there, that fill other prompts in other places: an engine with KVCOMM may move their
    cache, others compute them like any text. ``adapter`` is the name of one the engine has; what
    was computed through it is its own.
    """

    prompt: Prompt
    sampling: Sampling = Sampling()
    grammar: Grammar | None = None
    tools: tuple[ToolSpec, ...] = ()
    salt: str = ""
    adapter: str | None = None
    placeholders: tuple[Segment, ...] = ()
    id: str = field(default_factory=new_id)
    tool_choice: str = "auto"
    reuse: Literal["exact", "own", "approx"] = "exact"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, its natural-log probability and the likeliest alternatives."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer being written; ``index`` is the request's place in its group."""

    index: int
    text: str
    tokens: tuple[int, ...] = ()


ErrorKind = Literal["context", "engine", "remote"]


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    ``how`` is "exact", or names the approximation and its measured error. A request that failed
    alone has ``finish="error"`` and one sentence in ``error``; its group is not affected.
    ``error_kind`` says whose fault that was: "context" (the prompt does not fit), "engine" (it
    stopped or was closed), "remote" (the endpoint), or None (the request asks for what cannot be).
    """

    text: str
    tokens: tuple[int, ...] = ()
    finish: Finish = "stop"
    usage: Usage = Usage()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    how: str = "exact"
    error: str | None = None
    error_kind: ErrorKind | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Log-likelihood (natural log, summed over tokens) of one continuation."""

    text: str
    logprob: float
    token_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is: model name, context length in tokens (None: unknown), number format.

    ``exact_counts`` is false where token counts are estimates (a remote model's tokenizer);
    ``knows_tools`` where the model's chat template leaves tools out and an engine refuses them.
    """

    model: str
    kind: Literal["local", "remote", "scripted"]
    context_tokens: int | None = None
    dtype: str = ""
    sharing: bool = True
    exact_counts: bool = True
    details: dict[str, Any] = field(default_factory=dict)
    knows_tools: bool = True


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is: requests, and bytes of its cache.

    ``pinned_bytes`` are held by requests under way: none are when nothing runs. What else is
    used may be dropped when memory is needed. ``preemptions`` counts the answers that gave their
    memory to others and went on later.
    """

    running: int
    waiting: int
    used_bytes: int
    pinned_bytes: int
    capacity_bytes: int
    preemptions: int = 0


OnDelta = Callable[[Delta], None]


class Engine(Protocol):
    """Generates, scores and embeds. Safe to call from many tasks of one event loop."""

    @property
    def info(self) -> EngineInfo: ...

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """Answer a group of requests, in order; what they share is computed once.

        ``on_delta`` is called on the event loop as text appears. Cancelling the awaiting task
        cancels the requests. Raises :class:`EngineError` where the engine itself fails.
        """
        ...

    async def score(self, prefix: Prompt, candidates: Sequence[str], salt: str = "") -> list[Score]:
        """Log-likelihood of each candidate as the continuation of one shared prefix."""
        ...

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape [len(texts), dimension]."""
        ...

    def count_tokens(self, prompt: Prompt) -> int:
        """How many tokens a prompt takes (an estimate unless ``info.exact_counts``)."""
        ...

    async def close(self) -> None:
        """Free threads, connections and memory; later calls raise :class:`EngineError`."""
        ...


@runtime_checkable
class Loaded(Protocol):
    """An engine that tells how busy it is."""

    @property
    def load(self) -> EngineLoad: ...


@runtime_checkable
class Adaptable(Protocol):
    """An engine with adapters that requests can name."""

    @property
    def adapter_names(self) -> tuple[str, ...]: ...


@runtime_checkable
class TokenCodec(Protocol):
    """An engine that tells the tokens of its model; safe to call from any thread."""

    def encode(self, prompt: Prompt, salt: str = "") -> list[int]:
        """The tokens of a prompt, chat template included."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included; raises :class:`EngineError` for no token."""
        ...
