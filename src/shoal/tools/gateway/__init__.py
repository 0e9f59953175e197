"""A gateway: one way to find, describe and call any number of tools."""

from shoal.tools.gateway.backends import Backend, BackendFault, Functions
from shoal.tools.gateway.gateway import Find, Gateway, GatewaySession, told
from shoal.tools.gateway.marking import as_data
from shoal.tools.gateway.records import Access, Approve, Fault, Reply, Span
from shoal.tools.gateway.results import Piece, Results
from shoal.tools.gateway.shelf import Joined, Shelf, close_names

__all__ = [
    "Access",
    "Approve",
    "Backend",
    "BackendFault",
    "Fault",
    "Find",
    "Functions",
    "Gateway",
    "GatewaySession",
    "Joined",
    "Piece",
    "Reply",
    "Results",
    "Shelf",
    "Span",
    "as_data",
    "close_names",
    "told",
]
