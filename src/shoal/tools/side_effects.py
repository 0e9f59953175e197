"""What a call does at worst, told from the operation's verb and its HTTP method.

A guess errs on the side of harm: what nobody can tell is ``write``, and what removes something
is ``destroy`` even where it could be restored.
"""

from __future__ import annotations

from shoal.core.records import SideEffect
from shoal.tools.text import words_of

DESTROYS = frozenset(
    """
    delete terminate destroy purge erase wipe drop expunge remove deregister revoke trash
    obliterate uninstall clear empty shred
    """.split()  # noqa: SIM905
)
READS = frozenset(
    """
    get list describe search query lookup look head count check scan fetch find show view select
    preview estimate validate verify detect test is download read export discover simulate
    """.split()  # noqa: SIM905
)
_PREFIXES = frozenset(["batch", "admin", "bulk", "transact", "internal", "aggregated"])
_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


def side_effect_of(operation: str, method: str = "", *, readonly: bool = False) -> SideEffect:
    """The class of an operation named like ``BatchDeleteItems`` behind an HTTP method.

    ``readonly`` is the word of a description that says so itself.
    """
    words = [word.lower() for word in words_of(operation)]
    verb = next((word for word in words if word not in _PREFIXES), "")
    method = method.upper()
    if method == "DELETE" or DESTROYS.intersection((verb, *words[-1:])):
        return "destroy"
    if readonly or method in _SAFE_METHODS:
        return "read"
    if verb in READS and method in ("", "POST"):
        return "read"
    return "write"
