"""One company's account: a local cloud that is started, filled, changed, compared and put back.

A snapshot is the list of calls that were made: identifiers in the cloud follow from a seed, so
making the same calls again gives the same account.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.core.errors import MissingExtra, ShoalError

REGION = "us-east-1"
SEED = 7
START_SECONDS = 60


class CloudDown(ShoalError):
    """The local cloud does not run, or has stopped; ``sent`` says whether it may have seen a
    call."""

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Called:
    """One call that was made: ``service.Operation`` and its arguments."""

    service: str
    operation: str
    arguments: Mapping[str, Any]


@dataclass(eq=False)
class Refused(Exception):
    """A call that the cloud refused; ``code`` is its own word for why."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two states: leaves by path, as they were and as they are."""

    added: Mapping[str, str]
    removed: Mapping[str, str]
    changed: Mapping[str, tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    @property
    def paths(self) -> frozenset[str]:
        """Every path that differs."""
        return frozenset(self.added) | frozenset(self.removed) | frozenset(self.changed)

    def places(self) -> dict[str, int]:
        """How many leaves differ, by service and kind of thing."""
        counts: dict[str, int] = {}
        for path in self.paths:
            place = ".".join(path.split(".")[:2])
            counts[place] = counts.get(place, 0) + 1
        return dict(sorted(counts.items()))


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> Difference:
    """Compare two states."""
    return Difference(
        {path: leaf for path, leaf in after.items() if path not in before},
        {path: leaf for path, leaf in before.items() if path not in after},
        {
            path: (before[path], after[path])
            for path in before.keys() & after.keys()
            if before[path] != after[path]
        },
    )


class Account:
    """A local cloud in a process of its own. Needs the extra ``company``.

    Raises :class:`CloudDown` where it does not start. Close it, or leave its ``with`` block.
    """

    def __init__(self) -> None:
        try:
            import botocore  # noqa: F401
            import moto  # noqa: F401
        except ImportError as error:
            raise MissingExtra("A company", "company") from error
        self.made: list[Called] = []
        self._sent = 0
        self._clients: dict[str, Any] = {}
        self._session: Any = None
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start the cloud, empty; nothing happens where it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "shoal.envs.company.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        timer = threading.Timer(START_SECONDS, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line.strip().isdigit():
            self.stop()
            raise CloudDown(
                "The local cloud did not start: check `python -c 'import moto.server'`."
            )
        self.url = f"http://127.0.0.1:{line.strip()}"
        self._clients.clear()
        self.made.clear()

    def stop(self) -> None:
        """Stop the cloud; what it held is gone."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None

    def close(self) -> None:
        """Stop the cloud and let connections go."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self.stop()

    def __enter__(self) -> Account:
        return self

    def __exit__(self, *gone: object) -> None:
        self.close()

    # -- calls --------------------------------------------------------------------------------

    def call(self, service: str, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Make a call; its answer as JSON can hold it.

        Raises :class:`Refused` where the cloud says no, :class:`CloudDown` where it is not there,
        ``ValueError`` for arguments that cannot be sent.
        """
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            EndpointConnectionError,
            HTTPClientError,
            ParamValidationError,
        )
        from botocore.model import OperationNotFoundError

        if self._process is None:
            raise CloudDown("The local cloud is stopped: start it.")
        client = self.client(service)
        try:
            answer = client._make_api_call(operation, self.whole(service, operation, arguments))
        except ClientError as error:
            said = error.response.get("Error", {})
            raise Refused(str(said.get("Code", "?")), str(said.get("Message", error))) from None
        except ParamValidationError as error:
            raise ValueError(str(error)) from None
        except OperationNotFoundError:
            raise ValueError(f"{service} has no operation {operation!r}.") from None
        except HTTPClientError as error:
            refused = isinstance(error, EndpointConnectionError)
            raise CloudDown(
                f"The local cloud does not answer: {error}", sent=not refused
            ) from error
        except BotoCoreError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # an answer that is none, of which its parser cannot make sense
            raise Refused("InternalError", f"{type(error).__name__}: {error}"[:200]) from None
        answer.pop("ResponseMetadata", None)
        self.made.append(Called(service, operation, arguments))
        plain: dict[str, Any] = _plain(answer)
        return plain

    def whole(self, service: str, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments with the tokens that services know a repetition by; else they are random."""
        model = self.client(service).meta.service_model.operation_model(operation)
        self._sent += 1
        token = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{operation} {self._sent}"))
        return {**dict.fromkeys(model.idempotent_members, token), **arguments}

    def client(self, service: str) -> Any:
        """The botocore client of a service, whose calls reach this account and nothing else."""
        from botocore.config import Config
        from botocore.session import Session

        with self._lock:
            if service not in self._clients:
                self._session = self._session or Session()
                self._clients[service] = self._session.create_client(
                    service,
                    region_name=REGION,
                    endpoint_url=self.url,
                    aws_access_key_id="company",
                    aws_secret_access_key="company",
                    config=Config(
                        retries={"max_attempts": 0},
                        s3={"addressing_style": "path"},
                        connect_timeout=5,
                        read_timeout=20,
                        inject_host_prefix=False,
                        user_agent_extra="shoal",
                    ),
                )
            return self._clients[service]

    # -- state --------------------------------------------------------------------------------

    def reset(self, calls: Sequence[Called] = (), seed: int = SEED) -> None:
        """Empty the account and make these calls in it; same calls and seed, same account."""
        self.start()
        self._post("/moto-api/reset")
        self._post(f"/moto-api/seed?a={seed}")
        self.made.clear()
        self._sent = 0
        for each in calls:
            self.call(each.service, each.operation, each.arguments)

    def snapshot(self) -> tuple[Called, ...]:
        """All calls that changed something may have been among these."""
        return tuple(self.made)

    def restore(self, snapshot: Sequence[Called]) -> None:
        """The account as it was at a snapshot."""
        self.reset(snapshot)

    def state(self) -> dict[str, str]:
        """Everything all services hold, as leaves by path; moments are left out."""
        import httpx

        try:
            found: dict[str, str] = httpx.get(f"{self.url}/company/state", timeout=60).json()
        except httpx.HTTPError as error:
            raise CloudDown(f"The local cloud does not answer: {error}.") from error
        return found

    def _post(self, path: str) -> None:
        import httpx

        try:
            httpx.post(f"{self.url}{path}", timeout=60).raise_for_status()
        except httpx.HTTPError as error:
            raise CloudDown(f"The local cloud does not answer: {error}.") from error


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: streams are read, bytes are text or base64, times are text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if hasattr(value, "read"):
        value = value.read()
    if isinstance(value, bytes | bytearray):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "__iter__"):  # an event stream
        return [_plain(part) for part in value]
    return json.loads(json.dumps(value, default=str))
