"""One office a process: the account, filled, behind a gateway with the whole AWS catalogue."""

from __future__ import annotations

import atexit
import threading
from dataclasses import dataclass

from shoal.core.errors import ConfigError
from shoal.envs.company.account import Account
from shoal.envs.company.cloud import Cloud
from shoal.envs.company.seed import seed_calls
from shoal.envs.company.served import Offered
from shoal.tools.gateway.gateway import Find, Gateway
from shoal.tools.gateway.shelf import Shelf, Tools
from shoal.tools.importers.botocore import from_botocore

_lock = threading.Lock()
_open: dict[tuple[str, ...], Office] = {}


@dataclass(frozen=True, slots=True)
class Office:
    """An account and the way to it."""

    account: Account
    gateway: Gateway


def open_office(tools: Tools, find: Find) -> Office:
    """A new account with the company's things in it, behind a gateway to these tools."""
    account = Account()
    account.reset(seed_calls())
    return Office(account, Gateway(Offered(tools), find, {"aws": Cloud(account)}))


def office(services: tuple[str, ...] = ()) -> Office:
    """This process's own office, opened when it is first asked for and closed at exit.

    services  whose tools there are; all of AWS where left out
    """
    with _lock:
        if services not in _open:
            _open[services] = open_office(*catalogue(services))
            atexit.register(close)
        return _open[services]


def close() -> None:
    """Close this process's offices, if any is open."""
    with _lock:
        while _open:
            _open.popitem()[1].account.close()


def catalogue(services: tuple[str, ...] = ()) -> tuple[Tools, Find]:
    """The AWS catalogue, or that of some services, and a search in it by words and meaning.

    Raises :class:`ConfigError` for a service there is not.
    """
    from shoal.models.embedding import Kept, open_embedder
    from shoal.tools import sources
    from shoal.tools.retrieval.index import ToolIndex
    from shoal.tools.retrieval.kept import open_index

    embedder = Kept(open_embedder("wordllama"))
    if services:
        tools: Tools = Shelf(from_botocore(sources.botocore_data(), services=services))
        found = {name.split(".")[1] for name in tools.names}
        if missing := sorted(set(services) - found):
            raise ConfigError(f"AWS has no service {missing[0]!r}.")
        index = ToolIndex(embedder=embedder)
        index.add(tools[name] for name in tools.names)
    else:
        whole = sources.load("aws")
        tools, index = whole, open_index(whole, embedder=embedder)
    return tools, lambda query, k: [one.name for one in index.search(query, k)]
