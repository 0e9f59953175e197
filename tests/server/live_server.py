"""A real server on a loopback port, in a thread that ends with the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

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
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield address_of(sock)
    finally:
        server.should_exit = True
        thread.join(10)
        sock.close()
        assert not thread.is_alive()
