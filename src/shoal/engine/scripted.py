"""An engine without a model: scripted answers, simulated tokens and prefix sharing, for tests.

Tokens are words split at white space. A trie over the words of all prompts seen so far tells
which of them a caching engine would have found, so usage is meaningful and the same every time;
times follow from the counts and are the same every time too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.core import rng
from shoal.core.errors import EngineError
from shoal.core.protocols import (
    Completion,
    Delta,
    EngineInfo,
    OnDelta,
    Prompt,
    Request,
    Score,
)
from shoal.core.records import Finish, Message, Usage

Answers = Callable[[tuple[Message, ...], int], str] | Mapping[str, str] | Sequence[str] | str | None
"""How answers are found: a function of messages and seed; by the first key that occurs in the
last message; one after the other (the last one for ever); always the same; or seeded words."""

_DIMENSIONS = 64


@dataclass(slots=True)
class ScriptedEngine:
    """Answers from a script behind the engine protocol.

    failures      number of the request (from 0, over the engine's life) -> a sentence, which
                  fails this request alone, or an EngineError, which fails its whole group
    grammar       false: behaves like a model that cannot be held to a grammar
    delay         seconds of real time per generated word
    prefill_ms    simulated milliseconds per computed prompt token; decode_ms per generated one
    token_bytes   simulated bytes of cache per token
    groups        the requests of every call, for assertions
    """

    answers: Answers = None
    failures: Mapping[int, str | EngineError] = field(default_factory=dict)
    sharing: bool = True
    grammar: bool = True
    context_tokens: int | None = None
    delay: float = 0.0
    prefill_ms: float = 1.0
    decode_ms: float = 10.0
    token_bytes: int = 1000
    groups: list[tuple[Request, ...]] = field(default_factory=list)
    _tries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _asked: int = 0
    _closed: bool = False

    @property
    def info(self) -> EngineInfo:
        """A scripted model."""
        return EngineInfo("scripted", "scripted", self.context_tokens, sharing=self.sharing)

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """Answer a group in order; what earlier prompts began with counts as shared."""
        self._check_open()
        numbers = range(self._asked, self._asked + len(requests))
        self._asked += len(requests)
        self.groups.append(tuple(requests))
        for number in numbers:
            failure = self.failures.get(number)
            if isinstance(failure, EngineError):
                raise failure
        completions = [
            self._complete(request, number)
            for request, number in zip(requests, numbers, strict=True)
        ]
        await self._stream(completions, on_delta)
        return completions

    def _complete(self, request: Request, number: int) -> Completion:
        words = _words(request.prompt)
        failure = self.failures.get(number)
        if failure is not None:
            return Completion("", finish="error", error=str(failure))
        room = len(words) + request.sampling.max_tokens
        if self.context_tokens is not None and room > self.context_tokens:
            sentence = f"The prompt of {len(words)} tokens and its answer exceed the context."
            return Completion("", finish="error", error=sentence, error_kind="context")
        text, finish = self._held(self._answer(request), request)
        answer = text.split()
        shared = self._share(words, request.salt)
        first = self.prefill_ms * (len(words) - shared)
        usage = Usage(
            prompt_tokens=len(words),
            shared_tokens=shared,
            decoded_tokens=len(answer),
            first_token_ms=first,
            total_ms=first + self.decode_ms * len(answer),
            kv_bytes=self.token_bytes * (len(words) - shared + len(answer)),
        )
        return Completion(text, tuple(map(_token, answer)), finish, usage)

    def _answer(self, request: Request) -> str:
        messages = _messages(request.prompt)
        answers, seed = self.answers, request.sampling.seed
        if callable(answers):
            return answers(messages, seed)
        if isinstance(answers, str):
            return answers
        if isinstance(answers, Mapping):
            last = messages[-1].content if messages else ""
            found = (text for key, text in answers.items() if key in last)
            return next(found, "")
        if answers:
            place = sum(len(group) for group in self.groups[:-1])
            place += [one.id for one in self.groups[-1]].index(request.id)
            return answers[min(place, len(answers) - 1)]
        vocabulary = sorted(set(re.findall(r"\w+", messages[-1].content))) if messages else []
        count = 3 + int(rng.uniform(seed, "count") * 6)
        draws = (rng.uniform(seed, i) for i in range(count if vocabulary else 0))
        return " ".join(vocabulary[int(draw * len(vocabulary))] for draw in draws)

    def _held(self, text: str, request: Request) -> tuple[str, Finish]:
        """The answer within its grammar, its stop strings and its length."""
        choices = request.grammar.value if request.grammar else ()
        if self.grammar and isinstance(choices, tuple) and choices and text not in choices:
            named = [choice for choice in choices if choice in text.split()]
            drawn = choices[int(rng.uniform(request.sampling.seed, "choice") * len(choices))]
            text = named[0] if named else drawn
        for stop in request.sampling.stop:
            text = text.partition(stop)[0]
        words = text.split()
        if len(words) > request.sampling.max_tokens:
            return " ".join(words[: request.sampling.max_tokens]), "length"
        return text, "stop"

    def _share(self, words: Sequence[str], salt: str) -> int:
        """How many leading words some earlier prompt began with; remembers this prompt."""
        if not self.sharing:
            return 0
        node = self._tries.setdefault(salt, {})
        shared, known = 0, True
        for word in words:
            known = known and word in node
            shared += known
            node = node.setdefault(word, {})
        return min(shared, max(0, len(words) - 1))  # the last token is always computed

    async def _stream(self, completions: Sequence[Completion], on_delta: OnDelta | None) -> None:
        pieces = [re.findall(r"\s*\S+", completion.text) for completion in completions]
        longest = max(map(len, pieces), default=0)
        if on_delta is None:
            await asyncio.sleep(self.delay * longest)
            return
        for place in range(longest):
            await asyncio.sleep(self.delay)
            for index, words in enumerate(pieces):
                if place < len(words):
                    token = _token(words[place].strip())
                    on_delta(Delta(index, words[place], (token,)))

    async def score(self, prefix: Prompt, candidates: Sequence[str], salt: str = "") -> list[Score]:
        """Log-likelihoods that depend on nothing but the texts, at most 0, one per word."""
        self._check_open()
        start = " ".join(_words(prefix))
        scores = []
        for text in candidates:
            words = text.split()
            each = tuple(-5.0 * rng.uniform(start, *words[: i + 1]) for i in range(len(words)))
            scores.append(Score(text, sum(each), each))
        return scores

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Bags of words as unit vectors: texts that share words are near."""
        self._check_open()
        vectors = np.zeros((len(texts), _DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            for word in text.casefold().split():
                vectors[row, _token(word) % _DIMENSIONS] += 1.0
        vectors[~vectors.any(axis=1), 0] = 1.0
        norms: NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / norms

    def count_tokens(self, prompt: Prompt) -> int:
        """Words, those that mark the roles included."""
        return len(_words(prompt))

    async def close(self) -> None:
        """Later calls raise :class:`EngineError`."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("The scripted engine is closed: make a new one.")


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    return tuple(
        part if isinstance(part, Message) else Message("user", part.text) for part in prompt
    )


def _words(prompt: Prompt) -> list[str]:
    words: list[str] = []
    for part in prompt:
        if isinstance(part, Message):
            words.append(f"<{part.role}>")
            words += part.content.split()
        else:
            words += map(str, part.tokens) if part.tokens is not None else part.text.split()
    return words


def _token(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=2).digest(), "little")
