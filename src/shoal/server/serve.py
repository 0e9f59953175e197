"""From an engine to a listening server."""

from __future__ import annotations

import ipaddress
import socket

import uvicorn

from shoal.core.errors import ConfigError
from shoal.core.protocols import Engine
from shoal.server.app import create_app

SHUTDOWN_SECONDS = 10


def listen(host: str, port: int, *, api_key: str | None = None) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises :class:`ConfigError` where the address cannot be had, and where it can be reached from
    other machines although no key is asked for.
    """
    try:
        found = socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"{host!r}, port {port}, is not an address: {error}.") from error
    family, kind, protocol, _, address = found[0]
    if api_key is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ConfigError(
            f"{host} can be reached from other machines: set an API key (--api-key-env), or serve "
            "on 127.0.0.1."
        )
    sock = socket.socket(family, kind, protocol)  # asyncio turns off delays for named TCP only
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
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


def serve(
    engine: Engine, sock: socket.socket, *, model_name: str, api_key: str | None = None
) -> None:
    """Serve until interrupted; requests under way then have some seconds to finish."""
    config = uvicorn.Config(
        create_app(engine, model_name=model_name, api_key=api_key),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[sock])
