"""Lines of a batch file: OpenAI's requests, plain prompts and scoring jobs, checked beforehand.

A line is ``{"custom_id", "method", "url", "body"}`` with the body of its endpoint, or just
``{"prompt": …}`` with fields of /v1/completions. What is wrong with a file is said with the number
of the line; nothing runs until all lines are right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.core.errors import InputError, ShoalError, nearest
from shoal.core.protocols import Completion, EngineInfo, Prompt, Score, Segment
from shoal.core.rng import seed_of
from shoal.engine.batch.jobs import Asked, Response, Scored, Task
from shoal.server.adapters import adapter_of, id_of, through
from shoal.server.errors import ApiError, error_body, from_completion, from_engine, invalid
from shoal.server.shapes import ChatShape, TextShape
from shoal.server.translate import chat_talk, message_of, talk_requests, text_requests
from shoal.server.wire import ChatBody, ChatMessage, Strict, Text, TextBody

B = TypeVar("B", bound=BaseModel)

CHAT, TEXT, SCORES = "/v1/chat/completions", "/v1/completions", "/v1/scores"
URLS = (CHAT, TEXT, SCORES)
MAX_CANDIDATES = 1024


class Line(BaseModel):
    """A request of a batch file."""

    model_config = ConfigDict(extra="forbid")

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"] = "POST"
    url: str
    body: dict[str, Any]


class ScoreBody(Strict):
    """A scoring job: how likely each candidate is as the continuation of one prefix."""

    model: str
    prompt: Text | list[int] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    candidates: Annotated[
        list[Annotated[Text, Field(min_length=1)]],
        Field(min_length=1, max_length=MAX_CANDIDATES),
    ]
    cache_salt: Text | None = None


class ScoredText(BaseModel):
    """A candidate with its log-likelihood (natural logarithm)."""

    index: int
    text: str
    logprob: float
    token_logprobs: list[float]


class Scores(BaseModel):
    """The answer of a scoring job; ``best`` is the index of the likeliest candidate."""

    object: Literal["scores"] = "scores"
    model: str
    data: list[ScoredText]
    best: int


class LineError(InputError):
    """A line of a batch file that is not right."""

    def __init__(self, sentence: str, line: int) -> None:
        super().__init__(sentence)
        self.line = line


@dataclass(frozen=True, slots=True)
class Reading:
    """What lines are read for.

    model   the name answers carry, and that bodies must have; ``any_model`` lets it differ
    salt    scope of what the lines share in the engine
    adapters  those of the engine
    """

    model: str
    info: EngineInfo
    salt: str = ""
    any_model: bool = False
    adapters: tuple[str, ...] = ()


def read_lines(data: bytes, reading: Reading, url: str | None = None) -> list[Task]:
    """The tasks of a file, all for one ``url`` where one is given.

    Raises :class:`LineError` for the first line that is not right, and :class:`InputError` for a
    file without any.
    """
    tasks: list[Task] = []
    seen: dict[str, int] = {}
    for number, raw in _lines(data):
        try:
            task = _task(number, raw, reading, url)
        except ApiError as error:
            raise LineError(f"Line {number}: {error}", number) from error
        if (before := seen.setdefault(task.custom_id, number)) != number:
            name = task.custom_id
            sentence = f"Lines {before} and {number} have the same custom_id, {name!r}."
            raise LineError(sentence, number)
        tasks.append(task)
    if not tasks:
        raise InputError("There are no requests in the file: give one JSON object a line.")
    return tasks


def _lines(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LineError(f"Line {number} is not valid JSON: {error}.", number) from error
        if not isinstance(found, dict):
            raise LineError(f"Line {number} is no JSON object.", number)
        yield number, found


def _task(number: int, raw: dict[str, Any], reading: Reading, url: str | None) -> Task:
    if "body" not in raw and "url" not in raw:
        raw = _plain(number, raw)
    line = _valid(Line, raw)
    if line.url not in URLS:
        guess = nearest(line.url, URLS) or f" Known are {', '.join(URLS)}."
        raise ApiError(400, f"url: {line.url!r} cannot be batched.{guess}", param="url")
    if url not in (None, line.url):
        raise ApiError(400, f"url: this batch is for {url!r}, not {line.url!r}.", param="url")
    body = {"model": reading.model} | line.body
    adapter = body.get("adapter")
    if not reading.any_model:
        adapter = _adapter(body, reading)
        if adapter is not None and line.url == SCORES:
            raise ApiError(400, "body.model: scores are the model's own, without an adapter.")
        reading = replace(reading, model=id_of(reading.model, adapter))
    if body.get("stream"):
        raise ApiError(400, "body.stream: a batch cannot stream.", param="stream")
    if body.get("reuse", "exact") not in (None, "exact"):
        message = "body.reuse: a batch shares equal beginnings, no less and no more."
        raise ApiError(400, message, param="reuse")
    if body.get("seed") is None and line.url != SCORES:  # a resumed job draws as the first did
        body["seed"] = seed_of("batch", line.custom_id)
    work = _WORK[line.url](body, reading)
    if isinstance(work, Asked):
        work = replace(work, requests=tuple(through(work.requests, adapter)))
    return Task(line.custom_id, work, _failed)


def _adapter(body: dict[str, Any], reading: Reading) -> str | None:
    """The adapter a line means; raises :class:`ApiError` for a model that does not run here."""
    model, adapter = body["model"], body.get("adapter")
    own = model == reading.model or model.removeprefix(f"{reading.model}:") in reading.adapters
    if not isinstance(model, str) or not own:
        raise ApiError(400, f"body.model: this engine runs {reading.model!r}, not {model!r}.")
    return adapter_of(model, adapter, reading.model, reading.adapters)


def _plain(number: int, raw: dict[str, Any]) -> dict[str, Any]:
    """A line that is only a prompt; its id is its number unless it has one."""
    fields = dict(raw)
    name = fields.pop("custom_id", None)
    if "messages" in fields or "prompt" not in fields:
        raise ApiError(400, "give custom_id, url and body, or a prompt.")
    return {"custom_id": f"line-{number}" if name is None else name, "url": TEXT, "body": fields}


def _valid(shape: type[B], fields: dict[str, Any]) -> B:
    """The fields as a model; raises :class:`ApiError` for the first that does not fit."""
    try:
        return shape.model_validate(fields)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise invalid([{**one, "loc": ("body", *one["loc"])} for one in found]) from error


def _chat(fields: dict[str, Any], reading: Reading) -> Asked:
    body = _valid(ChatBody, fields)
    talk = chat_talk(body)
    requests = talk_requests(body, talk, reading.salt, reading.info)
    names = talk.use.names if talk.use else frozenset[str]()

    def answer(completions: Sequence[Completion]) -> Response:
        return _whole(ChatShape(reading.model, body.n or 1, names), completions)

    return Asked(tuple(requests), answer)


def _text(fields: dict[str, Any], reading: Reading) -> Asked:
    body = _valid(TextBody, fields)

    def answer(completions: Sequence[Completion]) -> Response:
        return _whole(TextShape(reading.model, body.n or 1), completions)

    return Asked(tuple(text_requests(body, reading.salt)), answer)


def _scores(fields: dict[str, Any], reading: Reading) -> Scored:
    body = _valid(ScoreBody, fields)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "body: give a prompt or messages.", param="prompt")
    if body.prompt is not None and not len(body.prompt):
        raise ApiError(400, "body.prompt: the prompt is empty.", param="prompt")
    prompt: Prompt
    if body.messages is not None:
        prompt = tuple(map(message_of, body.messages))
    elif isinstance(body.prompt, str):
        prompt = (Segment(body.prompt),)
    else:
        prompt = (Segment(tokens=tuple(body.prompt or ())),)
    scope = f"{reading.salt}/{body.cache_salt}" if body.cache_salt else reading.salt

    def answer(scores: Sequence[Score]) -> Response:
        data = [
            ScoredText(
                index=index,
                text=score.text,
                logprob=score.logprob,
                token_logprobs=list(score.token_logprobs),
            )
            for index, score in enumerate(scores)
        ]
        best = max(range(len(scores)), key=lambda index: scores[index].logprob)
        return Response(200, Scores(model=reading.model, data=data, best=best).model_dump())

    return Scored(prompt, tuple(body.candidates), answer, scope)


_WORK: dict[str, Callable[[dict[str, Any], Reading], Asked | Scored]] = {
    CHAT: _chat,
    TEXT: _text,
    SCORES: _scores,
}


def _whole(shape: ChatShape | TextShape, completions: Sequence[Completion]) -> Response:
    for completion in completions:
        if completion.error is not None:
            return _refused(from_completion(completion))
    return Response(200, shape.whole(completions).model_dump(mode="json"))


def _failed(error: ShoalError) -> Response:
    found = from_engine(error)
    return _refused(found if found.status < 500 else ApiError(400, str(error)))


def _refused(error: ApiError) -> Response:
    return Response(error.status, error_body(error))
