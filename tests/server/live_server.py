"""A real server on a loopback port, in a thread that ends with the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from patience import LONG, wait_until
from shoal.server.app import create_app
from shoal.server.serve import address_of, listen
from shoal.server.service import ServerLimits
from shoal.server.tenants import Keyring


@contextmanager
def running(
    engine: Any, *, model_name: str = "small", keyring: Keyring | None = None, **limits: Any
) -> Iterator[str]:
    """The base URL of a server on ``engine``."""
    sock = listen("127.0.0.1", 0, keyring=keyring)
    app = create_app(engine, model_name=model_name, keyring=keyring, limits=ServerLimits(**limits))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        assert wait_until(lambda: server.started or not thread.is_alive())
        yield address_of(sock)
    finally:
        server.should_exit = True
        thread.join(LONG)
        sock.close()
        assert not thread.is_alive()


@contextmanager
def asked(url: str, body: dict[str, Any]) -> Iterator[HTTPConnection]:
    """A request that was sent, and whose client goes away in the end."""
    place = urlsplit(url)
    assert place.hostname
    connection = HTTPConnection(place.hostname, place.port, timeout=LONG)
    headers = {"Content-Type": "application/json", "Authorization": "Bearer x"}
    connection.request("POST", place.path, json.dumps(body), headers)
    try:
        yield connection
    finally:
        connection.close()
