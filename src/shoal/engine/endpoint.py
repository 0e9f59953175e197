"""HTTP to one OpenAI-compatible endpoint: retries, time-outs, server-sent events, clear errors.

What an answer means is not known here; see :mod:`shoal.engine.remote_format`. Neither keys nor
prompts are logged, and neither appears in an error.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx

from shoal.core.errors import ConfigError, EngineError, RemoteError

CONNECT_SECONDS = 10.0
FIRST_DELAY, MAX_DELAY = 0.5, 8.0
MAX_EVENT_BYTES = 64 << 20
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})

T = TypeVar("T")


class Refused(EngineError):
    """A request the endpoint does not take (4xx): it fails alone. ``status`` is the HTTP code."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class Retryable(RemoteError):
    """A failure that may pass; ``after`` is how many seconds the endpoint asked to wait."""

    def __init__(self, sentence: str, after: float | None = None) -> None:
        super().__init__(sentence)
        self.after = after


class Endpoint:
    """A base URL with a key. One object serves one event loop.

    timeout      seconds a request may take in all, attempts and waits between them included
    retries      attempts after the first, for 408, 429, 5xx and broken connections
    concurrency  requests under way at a time; more wait their turn
    client       an HTTP client to share; it stays the caller's to close
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout: float = 600.0,
        retries: int = 4,
        concurrency: int = 16,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        """Raises :class:`ConfigError` where ``base_url`` is no http(s) address."""
        self.base = base(base_url)
        self.timeout = timeout
        self._retries = retries
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._key = key
        self._slots = asyncio.Semaphore(concurrency)
        self._owned = client is None
        self._client = client or httpx.AsyncClient(
            trust_env=not _loopback(self.base), limits=httpx.Limits(max_connections=concurrency)
        )

    def __str__(self) -> str:
        return _shown(self.base)

    async def close(self) -> None:
        """Close connections, unless the client is shared."""
        if self._owned:
            await self._client.aclose()

    async def post(
        self, path: str, body: Mapping[str, Any], read: Callable[[httpx.Response], Awaitable[T]]
    ) -> T:
        """Send a JSON body and return what ``read`` makes of the open response.

        Raises :class:`Refused` where the endpoint does not take this request and
        :class:`RemoteError` where it is down, too slow or unreadable. Cancelling closes the
        connection. ``read`` may run several times; :class:`Retryable` from it is tried again.
        """
        async with self._slots:
            try:
                async with asyncio.timeout(self.timeout):
                    return await self._tried(path, body, read)
            except TimeoutError as error:
                raise RemoteError(
                    f"{self}{path} did not finish within {self.timeout:g} s: allow it more time "
                    "or ask for fewer tokens."
                ) from error

    async def _tried(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[httpx.Response], Awaitable[T]],
    ) -> T:
        deadline = time.monotonic() + self.timeout
        for attempt in range(self._retries + 1):
            try:
                return await self._once(path, body, read)
            except Retryable as failure:
                wait = failure.after if failure.after is not None else _backoff(attempt)
                if attempt == self._retries or time.monotonic() + wait > deadline:
                    times = "once" if attempt == 0 else f"{attempt + 1} times"
                    raise RemoteError(
                        f"{str(failure).rstrip('.')} (tried {times}): check that it runs, or "
                        "try again later."
                    ) from failure
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _once(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[httpx.Response], Awaitable[T]],
    ) -> T:
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        try:
            async with self._client.stream(
                "POST", self.base + path, json=body, headers=self._headers, timeout=timeout
            ) as response:
                if response.status_code >= 300:
                    await response.aread()
                    raise refusal(response, self._key)
                return await read(response)
        except httpx.HTTPError as error:
            raise Retryable(f"{self}{path} cannot be reached ({_reason(error)}).") from error


def get(base_url: str, path: str, *, key: str | None = None) -> Any:
    """The JSON answer to a GET, tried once, blocking. Raises :class:`EngineError`."""
    url = base(base_url) + path
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(trust_env=not _loopback(url), timeout=CONNECT_SECONDS) as client:
            response = client.get(url, headers=headers)
    except httpx.HTTPError as error:
        raise RemoteError(
            f"{_shown(url)} cannot be reached ({_reason(error)}): check the address and that "
            "the endpoint runs."
        ) from error
    if response.status_code >= 300:
        raise refusal(response, key)
    return parse(response)


def refusal(response: httpx.Response, key: str | None = None) -> EngineError:
    """What an error status stands for: :class:`Refused`, :class:`Retryable` or final."""
    status = response.status_code
    url = _shown(str(response.request.url))
    message, code = _error_of(response.content)
    if key:
        message = message.replace(key, "***")
    sentence = f"{url} answered {status}{': ' if message else ''}{message.rstrip('.')}"
    if status < 400:
        return RemoteError(f"{url} redirects elsewhere: give the final address.")
    if status in (401, 403):
        return RemoteError(f"{sentence} (set SHOAL_API_KEY to a key it accepts).")
    if status in _RETRIED and code != "insufficient_quota":
        return Retryable(f"{sentence}.", _retry_after(response.headers.get("retry-after")))
    if status >= 500 or status == 429:
        return RemoteError(f"{sentence}.")
    return Refused(f"{sentence}.", status)


def base(url: str) -> str:
    """The base URL without a slash at its end; a bare host gets ``/v1``."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url!r} is not an address: {error}.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{_shown(url)!r} is not an address of the form http://host:port/v1.")
    if parsed.userinfo:
        raise ConfigError(f"Give the key of {_shown(url)} in SHOAL_API_KEY, not in the address.")
    path = parsed.path.rstrip("/") or "/v1"
    return str(parsed.copy_with(path=path, query=None, fragment=None))


def parse(response: httpx.Response) -> Any:
    """The body, which was read, as JSON; garbage raises :class:`RemoteError`."""
    try:
        return json.loads(response.content)
    except ValueError as error:
        raise garbage(response, "no JSON", response.content) from error


async def events(response: httpx.Response) -> AsyncIterator[Any]:
    """The JSON objects of a stream of server-sent events, up to ``[DONE]`` or its end.

    Lines end at a line feed alone: JSON may hold other separators unescaped.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            name, _, data = line.partition(b":")
            if name != b"data":
                continue
            if data.strip() == b"[DONE]":
                return
            try:
                yield json.loads(data)
            except ValueError as error:
                raise garbage(response, "an event that is no JSON", data) from error
        if len(rest) > MAX_EVENT_BYTES:
            raise garbage(response, "an event without an end", rest)


def garbage(response: httpx.Response, what: str, data: bytes = b"") -> RemoteError:
    """The error for an answer nobody can read; shows how it begins."""
    begins = " ".join(data[:60].decode("utf-8", "replace").split())
    shown = f" ({begins!r}…)" if begins else ""
    return RemoteError(
        f"{_shown(str(response.request.url))} sent {what}{shown}: check that it is the base URL "
        "of an OpenAI-compatible endpoint."
    )


def _error_of(data: bytes) -> tuple[str, str]:
    """Message and code of an error body, in the shapes endpoints use; else how it begins."""
    try:
        body = json.loads(data)
    except ValueError:
        return " ".join(data[:200].decode("utf-8", "replace").split()), ""
    found = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(found, dict):
        message = found.get("message") or found.get("detail") or ""
        return _short(message), str(found.get("code") or "")
    return _short(found), ""


def _short(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 300 else text[:299] + "…"


def _reason(error: httpx.HTTPError) -> str:
    return _short(error) or type(error).__name__


def _shown(url: str) -> str:
    """A URL without user, password and query."""
    try:
        parsed = httpx.URL(url)
        return str(parsed.copy_with(userinfo=b"", query=None, fragment=None))
    except httpx.InvalidURL:
        return "the address"


def _loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt: doubling, with jitter, so that clients spread."""
    return min(MAX_DELAY, FIRST_DELAY * 2.0**attempt) * random.uniform(0.5, 1.0)


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
