"""What a model says, generated once: how long it may speak does not change what it says first.

An engine's draws depend on seed and place in the answer alone, so the answer under a smaller
limit is the beginning of the answer under a larger one. Each is generated up to the largest limit
and cut: a policy that tries many limits pays for one generation. Engines whose tokens cannot be
read back (endpoints) generate once for each limit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shoal.core.protocols import Completion, Engine, Prompt, Request, Sampling, TokenCodec
from shoal.core.records import Message
from shoal.mechanisms.protocol import digest


@dataclass(frozen=True, slots=True)
class Spoken:
    """What was said, and the tokens it took; None where the engine failed or took too long."""

    text: str | None
    tokens: int = 0
    prompt_tokens: int = 0
    whole: bool = False
    """Whether it ended by itself, before its limit."""


@dataclass(frozen=True, slots=True)
class _Kept:
    tokens: tuple[int, ...]
    text: str
    decoded: int
    prompt_tokens: int
    whole: bool


class Generations:
    """Generations of one engine, remembered; ``longest`` is the largest limit in tokens.

    ``path`` keeps them in a file too, a line each, where a later process finds them. An answer that
    takes longer than ``seconds`` is none. ``asked`` and ``made`` count what was wanted and what was
    generated, in answers.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        longest: int,
        path: Path | None = None,
        seconds: float | None = None,
    ) -> None:
        self.engine, self.longest, self.path = engine, longest, path
        self._seconds = seconds
        self.asked = self.made = 0
        self._cuts = isinstance(engine, TokenCodec) and engine.info.kind == "local"
        self._known: dict[str, _Kept] = dict(_read(path)) if path else {}
        self._under_way: dict[str, asyncio.Event] = {}

    async def generate(
        self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]
    ) -> list[Spoken]:
        """What the engine answers each prompt, in order; only what is new is generated."""
        wanted = [self._wanted(sampling) for sampling in samplings]
        keys = [self._key(*pair) for pair in zip(prompts, wanted, strict=True)]
        waited = [self._under_way[key] for key in dict.fromkeys(keys) if key in self._under_way]
        new = {
            key: Request(prompt, sampling)
            for key, prompt, sampling in zip(keys, prompts, wanted, strict=True)
            if key not in self._known and key not in self._under_way
        }
        self.asked += len(keys)
        self.made += len(new)
        if new:
            await self._generate(new)
        await asyncio.gather(*(event.wait() for event in waited))
        return [
            self._cut(self._known[key], sampling.max_tokens) if key in self._known else Spoken(None)
            for key, sampling in zip(keys, samplings, strict=True)
        ]

    async def _generate(self, new: dict[str, Request]) -> None:
        """Generate what is new; whoever wants the same meanwhile waits for it."""
        ended = asyncio.Event()
        self._under_way.update(dict.fromkeys(new, ended))
        try:
            found = await self._made(list(new.values()))
            for key, completion in zip(new, found, strict=True):
                if completion is not None and completion.finish != "error":
                    self._keep(key, completion)
        finally:
            for key in new:
                del self._under_way[key]
            ended.set()

    def _wanted(self, sampling: Sampling) -> Sampling:
        """What is generated for these settings: as long as may be, and greedy is greedy."""
        seed = sampling.seed if sampling.temperature else 0
        limit = max(self.longest, sampling.max_tokens) if self._cuts else sampling.max_tokens
        return replace(sampling, max_tokens=limit, seed=seed)

    async def _made(self, requests: list[Request]) -> Sequence[Completion | None]:
        """New answers; with a limit of seconds each waits for itself, and others are not lost."""
        if self._seconds is None:
            return await self.engine.generate(requests)

        async def one(request: Request) -> Completion | None:
            try:
                return (await asyncio.wait_for(self.engine.generate([request]), self._seconds))[0]
            except TimeoutError:
                return None

        return await asyncio.gather(*map(one, requests))

    def _cut(self, kept: _Kept, limit: int) -> Spoken:
        if kept.decoded <= limit:
            return Spoken(kept.text, kept.decoded, kept.prompt_tokens, kept.whole)
        assert isinstance(self.engine, TokenCodec), "others are generated for their own limit"
        return Spoken(self.engine.decode(kept.tokens[:limit]), limit, kept.prompt_tokens)

    def _key(self, prompt: Prompt, sampling: Sampling) -> str:
        parts = [
            [part.role, part.content] if isinstance(part, Message) else [part.text, part.tokens]
            for part in prompt
        ]
        return digest([self.engine.info.model, self.engine.info.dtype, parts, asdict(sampling)])

    def _keep(self, key: str, completion: Completion) -> None:
        kept = _Kept(
            completion.tokens if self._cuts else (),
            completion.text,
            completion.usage.decoded_tokens,
            completion.usage.prompt_tokens,
            completion.finish == "stop",
        )
        self._known[key] = kept
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps({'key': key, **asdict(kept)})}\n")  # after half a line


def _read(path: Path) -> list[tuple[str, _Kept]]:
    """What a file has; lines that were not written whole are left out."""
    found = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            fields = json.loads(line)
            key = fields.pop("key")
            found.append((key, _Kept(**{**fields, "tokens": tuple(fields["tokens"])})))
        except (ValueError, KeyError, TypeError):
            continue
    return found
