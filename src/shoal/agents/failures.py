"""What happens when a member's turn fails: retry, skip, replace or abort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from shoal.agents.rules import Registry

Then = Literal["skip", "abort"]


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """Try ``retries`` times more; then another model (where one is named); then skip or abort.

    skip   the member says nothing this time, the others go on, and the outcome says so
    abort  the run stops where it is; its log can be resumed
    """

    retries: int = 0
    model: str | None = None
    then: Then = "skip"


failure_policies: Registry[FailurePolicy] = Registry("failure")


@failure_policies.register("retry")
def retry(n: Annotated[int, Field(ge=1, le=10)] = 1, then: Then = "skip") -> FailurePolicy:
    """Try again ``n`` times, then skip the turn or abort the run."""
    return FailurePolicy(n, then=then)


@failure_policies.register("skip")
def skip() -> FailurePolicy:
    """Go on without this turn."""
    return FailurePolicy()


@failure_policies.register("replace")
def replace(model: str, then: Then = "skip") -> FailurePolicy:
    """Let another model (the key of an engine) take the turn."""
    return FailurePolicy(model=model, then=then)


@failure_policies.register("abort")
def abort() -> FailurePolicy:
    """Stop the run at once."""
    return FailurePolicy(then="abort")
