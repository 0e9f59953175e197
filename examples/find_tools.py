"""Find the few tools a request needs among some hundred, and list them for a model.

    python examples/find_tools.py

Two agents share one index; each has its own short list, which only grows, so that the beginning
of its prompt stays as it was and cached keys and values can be used again.
"""

from __future__ import annotations

from shoal.models.static_embedder import WordLlama
from shoal.tools.functions import from_function
from shoal.tools.importers.botocore import from_botocore
from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.sources import botocore_data


def tell_the_team(text: str) -> str:
    """Post a message into the team's channel, for everybody to read."""
    return f"posted {len(text)} characters"


def main() -> None:
    index = ToolIndex(embedder=WordLlama.open())
    index.add(from_botocore(botocore_data(), services=("s3", "sqs", "iam", "lambda")), label="aws")
    index.add([from_function(tell_the_team, side_effect="write").spec], label="ours")
    print(f"{len(index)} tools in the index")

    for agent, request in (
        ("ann", "make a queue for the jobs, and then tell the team about it"),
        ("bob", "remove old objects from a bucket"),
        ("ann", "send the first message to the queue"),
    ):
        before = index.working_set(agent).block(index.spec)
        found = index.plan(request, 4, agent=agent)
        after = index.working_set(agent).block(index.spec)
        print(f"\n{agent}: {request}")
        for tool in found.tools:
            print(f"  {found.steps[tool.step]!r:40.40} {tool.name}")
        held = after.startswith(before)
        print(f"  the prompt {'begins as before' if held else 'begins anew'}: {len(after)} letters")

    index.record("aws.sqs.CreateQueue", ok=True)
    stats = index.stats()
    print(f"\n{stats.searches} searches for {stats.agents} agents over one index")


if __name__ == "__main__":
    main()
