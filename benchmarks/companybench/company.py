"""The company that a claim works in: its account, catalogue, search and tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from shoal.core.claims import Bench as Claim
from shoal.core.errors import ShoalError
from shoal.envs.company.account import Account
from shoal.envs.company.office import open_office
from shoal.envs.company.served import Offered
from shoal.envs.company.tasks import Task, load_tasks
from shoal.models.embedding import Kept, open_embedder
from shoal.tools import sources
from shoal.tools.catalogue import Catalogue
from shoal.tools.gateway import Gateway, Shelf
from shoal.tools.importers.botocore import from_botocore
from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.retrieval.kept import open_index

SMOKE = frozenset(("sqs", "sns", "iam", "s3", "dynamodb", "events"))


@dataclass(frozen=True, slots=True)
class Place:
    """Everything that tasks are solved with."""

    account: Account
    gateway: Gateway
    tools: Offered
    index: ToolIndex
    tasks: list[Task]

    def plan(self, request: str, k: int) -> Sequence[str]:
        """Tools for a whole request, which is taken apart."""
        return [found.name for found in self.index.plan(request, k).tools]


@contextmanager
def opened(claim: Claim) -> Iterator[Place]:
    """The company, closed when the block ends."""
    from companybench.scripts import tasks_for

    embedder = Kept(open_embedder("wordllama"))
    if claim.smoke:
        shelf = Shelf(from_botocore(sources.botocore_data(), services=SMOKE))
        index = ToolIndex(embedder=embedder)
        index.add(shelf)
        tools: Shelf | Catalogue = shelf
    else:
        tools = _everything()
        index = open_index(tools, embedder=embedder)
    office = open_office(tools, lambda query, k: [one.name for one in index.search(query, k)])
    try:
        tasks = tasks_for(claim, load_tasks(), SMOKE)
        offered = office.gateway.tools
        assert isinstance(offered, Offered)
        yield Place(office.account, office.gateway, offered, index, tasks)
    finally:
        office.account.close()


def _everything() -> Catalogue:
    """AWS, and what else can be had: what is described but not served makes finding harder."""
    found = [sources.load("aws")]
    for name in ("google", "github"):
        try:
            found.append(sources.load(name))
        except ShoalError:
            continue  # the report says how many tools there are
    return Catalogue.joined(found)
