"""A script that knows the goal solves the company's tasks, in every arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from companybench import company
from shoal.core.claims import Bench as Claim
from shoal.core.stats import difference_interval, mean_interval, ratio_interval, wilson_interval
from shoal.envs.company import web
from shoal.envs.company.served import served_operations
from shoal.envs.company.solving import (
    Bench,
    Look,
    Solved,
    gateway_look,
    once_look,
    oracle_look,
    random_look,
)
from shoal.envs.company.tasks import Task

PRICE_IN, PRICE_OUT = 0.15e-6, 0.60e-6
"""US dollars a token, of a small hosted model in 2025: only to put tokens in one number."""


async def solving(claim: Claim) -> None:
    with company.opened(claim) as place:
        tasks = place.tasks
        kinds = Counter(task.kind for task in tasks)
        operations = served_operations()
        claim.workload = (
            f"{kinds['primitive']} primitive, {kinds['composite']} composite and "
            f"{kinds['impossible']} impossible tasks; {len(place.tools):,} tools, of which "
            f"{place.tools.served:,} are served. The local cloud answers "
            f"{sum(map(len, operations.values())):,} operations of {len(operations)} services: "
            f"{_largest(operations)}."
        )
        bench = Bench(place.account, place.gateway)
        arms: dict[str, Look] = {
            "oracle tools": oracle_look,
            "gateway, 3 searches": gateway_look(3),
            "gateway, 1 search": gateway_look(1),
            "one search for the task": once_look(place.plan),
            "random tools": random_look(claim.seed),
        }
        if claim.smoke:
            del arms["one search for the task"], arms["random tools"]
        found: dict[str, list[Solved]] = {name: [] for name in (*arms, "HTTP and pages")}
        pages = web.Pages(place.tools)
        for task in claim.track(tasks, "company tasks"):
            for name, look in arms.items():
                found[name].append(await bench.scripted(task, look))
            if task.kind != "impossible":
                found["HTTP and pages"].append(
                    await bench.by(
                        task, lambda t, bill: web.scripted(place.account, pages, t, bill)
                    )
                )
    for name, solved in found.items():
        _report(claim, name, solved)
    _judge(claim, found)
    _draw(claim, found)


def _largest(operations: dict[str, Sequence[str]]) -> str:
    ordered = sorted(operations.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    named = ", ".join(f"{name} {len(found)}" for name, found in ordered[:12])
    return f"{named}, and {len(ordered) - 12} more"


def _possible(solved: Sequence[Solved]) -> list[Solved]:
    return [one for one in solved if one.kind != "impossible"]


def _report(claim: Claim, name: str, solved: Sequence[Solved]) -> None:
    bills = [one.bill for one in solved]
    metrics = {
        f"{kind} done": wilson_interval(
            sum(one.done for one in solved if one.kind == kind),
            sum(one.kind == kind for one in solved),
        )
        for kind in ("primitive", "composite", "impossible")
        if any(one.kind == kind for one in solved)
    }
    dollars = [PRICE_IN * bill.tokens_in + PRICE_OUT * bill.tokens_out for bill in bills]
    claim.arm(
        f"script: {name}",
        **metrics,
        **{
            "score": mean_interval(np.array([one.score for one in _possible(solved)])),
            "searches or pages a task": float(np.mean([bill.finds for bill in bills])),
            "wrong calls a task": float(np.mean([bill.wrong for bill in bills])),
            "tokens read a task": mean_interval(np.array([float(b.tokens_in) for b in bills])),
            "tokens written a task": mean_interval(np.array([float(b.tokens_out) for b in bills])),
            "dollars a thousand tasks": 1000 * float(np.mean(dollars)),
            "values changed beside": float(sum(one.damage for one in solved)),
        },
    )


def _judge(claim: Claim, found: dict[str, list[Solved]]) -> None:
    def share(name: str) -> np.ndarray:
        return np.array([float(one.done) for one in _possible(found[name])])

    oracle, three, one = (
        share(name) for name in ("oracle tools", "gateway, 3 searches", "gateway, 1 search")
    )
    claim.verdict("with the right tools the script does every task", oracle.mean(), at_least=1.0)
    refused = [s for name in ("oracle tools", "gateway, 3 searches") for s in found[name]]
    refused = [one for one in refused if one.kind == "impossible"]
    claim.verdict(
        "impossible tasks are refused, and nothing changes",
        float(np.mean([one.done for one in refused])) if refused else 1.0,
        at_least=1.0,
    )
    claim.verdict(
        "the right tools change nothing beside the task",
        float(sum(one.damage for one in found["oracle tools"])),
        at_most=0.0,
    )
    claim.verdict(
        "found tools do 9 of 10 tasks, with up to 3 searches a step",
        wilson_interval(int(three.sum()), len(three)),
        at_least=0.90,
    )
    if not claim.smoke:  # ten tasks cannot tell
        claim.verdict(
            "searching again is worth 8 points",
            difference_interval(three, one, paired=True, seed=claim.seed),
            at_least=0.08,
        )
        claim.verdict(
            "searching while working does more than one search for the whole task",
            difference_interval(
                three, share("one search for the task"), paired=True, seed=claim.seed
            ),
            at_least=0.0,
        )

    def tokens(name: str) -> np.ndarray:
        bills = [one.bill for one in _possible(found[name])]
        return np.array([float(bill.tokens_in + bill.tokens_out) for bill in bills])

    pages = tokens("HTTP and pages")
    for name in ("oracle tools", "gateway, 3 searches"):
        claim.verdict(
            f"{name}: fewer tokens than pages and HTTP (times)",
            ratio_interval(pages, tokens(name), seed=claim.seed),
            at_least=1.0,
        )


def _draw(claim: Claim, found: dict[str, list[Solved]]) -> None:
    with claim.plot("arms", "Tasks done and tokens a task, by arm (script)", panels=2) as (a, b):
        names = list(found)
        done = [float(np.mean([one.done for one in _possible(found[name])])) for name in names]
        used = [
            float(np.mean([s.bill.tokens_in + s.bill.tokens_out for s in found[name]]))
            for name in names
        ]
        a.barh(names[::-1], done[::-1])
        a.set_xlabel("share of tasks done")
        a.set_xlim(0, 1)
        b.barh(names[::-1], used[::-1])
        b.set_xlabel("tokens a task")
        b.set_xscale("log")
        b.set_yticks([])


def tasks_for(claim: Claim, tasks: Sequence[Task], services: frozenset[str]) -> list[Task]:
    """All tasks; in a smoke run ten whose tools belong to few services."""
    if not claim.smoke:
        return list(tasks)
    inside = [
        task for task in tasks if all(step.tool.split(".")[1] in services for step in task.steps)
    ]
    chosen: list[Task] = []
    for kind, count in (("primitive", 5), ("composite", 4), ("impossible", 1)):
        chosen += [task for task in inside if task.kind == kind][:count]
    return chosen
