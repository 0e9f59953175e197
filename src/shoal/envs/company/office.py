"""One office a process: the account, filled, behind a gateway with the whole AWS catalogue."""

from __future__ import annotations

import atexit
import threading
from dataclasses import dataclass

from shoal.envs.company.account import Account
from shoal.envs.company.cloud import Cloud
from shoal.envs.company.seed import seed_calls
from shoal.envs.company.served import Offered
from shoal.tools.gateway.gateway import Find, Gateway
from shoal.tools.gateway.shelf import Tools

_lock = threading.Lock()
_open: list[Office] = []


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


def office() -> Office:
    """This process's own office, opened when it is first asked for and closed at exit."""
    with _lock:
        if not _open:
            tools, find = catalogue()
            _open.append(open_office(tools, find))
            atexit.register(close)
        return _open[0]


def close() -> None:
    """Close this process's office, if it is open."""
    with _lock:
        while _open:
            _open.pop().account.close()


def catalogue(*, dense: bool = False) -> tuple[Tools, Find]:
    """The AWS catalogue and a search in it; by words alone, or by meaning, too."""
    from shoal.models.embedding import Kept, open_embedder
    from shoal.tools import sources
    from shoal.tools.retrieval.kept import open_index

    tools = sources.load("aws")
    index = open_index(tools, embedder=Kept(open_embedder("wordllama")) if dense else None)
    return tools, lambda query, k: [found.name for found in index.search(query, k)]
