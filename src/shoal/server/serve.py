"""From an engine to a listening server, and to its orderly end."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from pathlib import Path
from types import FrameType

import uvicorn

from shoal.core.errors import ConfigError
from shoal.core.protocols import Engine
from shoal.server.app import create_app
from shoal.server.service import ServerLimits, Service
from shoal.server.tenants import Keyring

_POLL_SECONDS = 0.05
_LAST_SECONDS = 2  # for answers that were handed back to reach their clients


def listen(host: str, port: int, *, keyring: Keyring | None = None) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises :class:`ConfigError` where the address cannot be had, and where it can be reached from
    other machines although no key is asked for.
    """
    try:
        found = socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"{host!r}, port {port}, is not an address: {error}.") from error
    family, kind, protocol, _, address = found[0]
    loopback = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
    if (keyring is None or keyring.open) and not loopback:
        raise ConfigError(
            f"{host} can be reached from other machines: set an API key (--keys or --api-key-env), "
            "or serve on 127.0.0.1."
        )
    sock = socket.socket(family, kind, protocol)  # asyncio turns off delays for named TCP only
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"Cannot listen on {host}, port {port} ({error.strerror}): choose another with --port."
        ) from error
    return sock


def address_of(sock: socket.socket) -> str:
    """The base URL of a server on this socket."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class Server(uvicorn.Server):
    """Stops in an orderly way: after the first signal new requests get a 503 while those under
    way may end; what has not ended by the deadline is handed back with a 503. A second signal
    ends everything at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._stopping: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGINT and SIGTERM."""
        if self._service.gate.draining:
            self._service.gate.hand_back()
            self.should_exit = self.force_exit = True
            return
        self._service.gate.drain()

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second, on the loop."""
        if self._service.gate.draining and self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        return await super().on_tick(counter)

    async def _stop(self) -> None:
        gate = self._service.gate
        deadline = asyncio.get_running_loop().time() + self._service.limits.stop_seconds
        while gate.running + gate.waiting and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        gate.hand_back()
        self.should_exit = True


def serve(
    engine: Engine,
    sock: socket.socket,
    *,
    model_name: str,
    keyring: Keyring | None = None,
    limits: ServerLimits | None = None,
    batch_folder: Path | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; returns when the last request has ended."""
    server = server_of(
        engine, model_name=model_name, keyring=keyring, limits=limits, batch_folder=batch_folder
    )
    server.run(sockets=[sock])


def server_of(
    engine: Engine,
    *,
    model_name: str,
    keyring: Keyring | None = None,
    limits: ServerLimits | None = None,
    batch_folder: Path | None = None,
) -> Server:
    """A server that is not running yet; see :func:`create_app`."""
    app = create_app(
        engine, model_name=model_name, keyring=keyring, limits=limits, batch_folder=batch_folder
    )
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_LAST_SECONDS
    )
    return Server(config, app.state.service)
