"""The company's cloud: moto's server in a process of its own, and a look at all of its state.

Started as ``python -m shoal.envs.company.server``. It listens on loopback, prints its port, and
ends when its stdin closes, so that it never outlives who started it. Beside moto's own addresses
it answers ``GET /company/state`` with everything its services hold, as leaves by path, without
what changes by itself (times, random salts).

Some of moto's services draw identifiers from Python's generator or the system's instead of moto's
own. Here these follow from the seed, too: this process keeps no secret.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import sys
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_SYSTEM = os.urandom
DEEPEST = 12
BULK = frozenset(
    (
        "amis", "managed_policies", "aws_managed_policies", "instance_types", "prefix_lists",
        "account_id", "region_name", "partition", "key_name", "tag_name", "value_name",
    )
)  # fmt: skip
"""What comes with every account by the hundred, or with a service as soon as it is looked at."""

GIVEN = "Auto-created snapshot for AMI"
"""How the snapshots are described that every account has, by the hundred, too."""

VOLATILE = ("date", "time", "created", "modified", "updated", "launch", "expir", "salt", "last_")
"""Parts of names that mean a moment, or something random."""


def leaves_of(value: Any, path: str, inside: tuple[int, ...] = ()) -> Iterator[tuple[str, str]]:
    """What a value consists of: a text by path for everything that is no container."""
    if isinstance(value, str | int | float | bool | bytes) or value is None:
        yield path, repr(value)[:500]
        return
    if len(inside) > DEEPEST or id(value) in inside or isinstance(value, datetime.date):
        return
    if str(getattr(value, "description", "")).startswith(GIVEN):
        return
    inside = (*inside, id(value))
    parts: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = enumerate(sorted(value, key=repr) if isinstance(value, set | frozenset) else value)
    elif type(value).__module__.startswith("moto."):
        parts = list(vars(value).items()) if hasattr(value, "__dict__") else ()
    else:
        return
    for name, part in parts:
        text = str(name)
        low = text.lower()
        if low in BULK or any(word in low for word in VOLATILE) or "backend" in low:
            continue
        yield from leaves_of(part, f"{path}.{text}", inside)


def state() -> dict[str, str]:
    """All services that were used, by service, region and path."""
    from moto.core.base_backend import BackendDict

    found: dict[str, str] = {}
    for backends in list(vars(BackendDict)["_instances"]):
        for account, region, backend in list(backends.iter_backends()):
            if account != "123456789012":
                continue
            found.update(leaves_of(vars(backend), f"{backends.service_name}/{region}"))
    return found


def seeded(size: int) -> bytes:
    """Bytes that follow from the seed for moto's services, and the system's for everything else.

    moto tells the registries of its services apart by identifiers that must stay different.
    """
    caller = str(sys._getframe(1).f_globals.get("__name__", ""))
    return random.randbytes(size) if caller.startswith("moto.") else _SYSTEM(size)


def main() -> None:
    """Serve until stdin closes."""
    os.environ["MOTO_PORT"] = "0"
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    moto = DomainDispatcherApplication(create_backend_app)
    os.urandom = seeded

    def application(environ: dict[str, Any], start: Any) -> Any:
        if environ["PATH_INFO"] == "/moto-api/seed":
            random.seed(urllib.parse.parse_qs(environ["QUERY_STRING"])["a"][0])
        if environ["PATH_INFO"] == "/company/state":
            body = json.dumps(state()).encode()
            start("200 OK", [("Content-Type", "application/json")])
            return [body]
        return moto(environ, start)

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: Any) -> None:
            """Nothing is logged: bodies may hold secrets."""

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
