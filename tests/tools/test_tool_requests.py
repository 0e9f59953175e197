"""Requests: what is polite goes, what is several becomes several, verbs get their synonyms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.tools.retrieval.requests import (
    LONGEST,
    MOST_STEPS,
    Speller,
    decompose,
    expand,
    rewrite,
    verb_of_operation,
    verbs_of_request,
)


@pytest.mark.parametrize(
    ("request_", "steps"),
    [
        ("create a bucket", ["create a bucket"]),
        ("create a bucket and upload a file", ["create a bucket", "upload a file"]),
        ("copy rules and tags of the group", ["copy rules and tags of the group"]),
        ("list users, then delete them", ["list users", "delete them"]),
        (
            "stop the instances, detach the volume, and finally delete the snapshot.",
            ["stop the instances", "detach the volume", "delete the snapshot"],
        ),
        ("Create a queue. Its name is jobs. Send 3.5 kB to it.",
         ["Create a queue. Its name is jobs", "Send 3.5 kB to it"]),
        ("1. open a case\n2. assign it to Ann\n- notify her",
         ["open a case", "assign it to Ann", "notify her"]),
        ("get the next page of results", ["get the next page of results"]),
        ("Lambda: invoke the function", ["Lambda: invoke the function"]),
        ("Step 2: invoke it. After that, wait", ["invoke it", "wait"]),
        ("open the case, then the next one", ["open the case", "the next one"]),
        ("who am I", ["who am I"]),
        ("create a role, policy and user", ["create a role, policy and user"]),
        ("please list the keys and please rotate them", ["please list the keys", "rotate them"]),
    ],
)  # fmt: skip
def test_a_request_is_split_where_another_verb_asks(request_: str, steps: list[str]) -> None:
    assert [step.removeprefix("please ") for step in decompose(request_)] == [
        step.removeprefix("please ") for step in steps
    ]


@given(st.text(max_size=300))
def test_every_request_has_one_to_six_steps(text: str) -> None:
    steps = decompose(rewrite(text))
    assert 1 <= len(steps) <= MOST_STEPS
    for step in steps:
        expand(step, 0.3)


def test_a_long_list_keeps_its_end() -> None:
    steps = decompose(". ".join(f"create thing{n}" for n in range(10)))
    assert len(steps) == MOST_STEPS and "thing9" in steps[-1]


@pytest.mark.parametrize(
    ("request_", "plain"),
    [
        ("Hi, could you please list   my users?", "list my users?"),
        ("I would like to delete a table", "delete a table"),
        ("To create a volume", "create a volume"),
        ("please", "please"),
    ],
)
def test_politeness_goes(request_: str, plain: str) -> None:
    assert rewrite(request_) in (plain, plain.replace("please", ""))


def test_a_pronoun_brings_what_was_spoken_of() -> None:
    assert rewrite("delete it", ["Create a DynamoDB table named Music"]) == (
        "delete it DynamoDB table named Music"
    )
    assert rewrite("delete the queue", ["Create a table"]) == "delete the queue"


def test_slips_are_mended_by_the_words_that_tools_have() -> None:
    known = {"bucket", "policy", "police", "instance", "detach"}
    spell = Speller(known.__contains__)
    spell.learn(["bucket", "policy", "police", "instance"])
    spell.learn(["bucket", "policy", "police", "instance", "detach"])
    assert [spell(word) for word in ("bukcet", "buckt", "bucketts", "Instence", "detatch")] == [
        "bucket", "bucket", None, "instance", "detach",
    ]  # fmt: skip
    assert spell("polico") is None or spell("polico") in ("policy", "police")
    assert spell("policx") is None or spell("policx") == "policy"
    assert spell("bucket") is None and spell("BuckEt") is None
    assert rewrite("delete the bukcet", (), spell) == "delete the bucket"


def test_verbs_of_people_bring_those_of_interfaces_and_count_less_themselves() -> None:
    assert expand("Remove a policy", 0.75).extra == (("delete", 0.75), ("remove", -0.75))
    assert expand("showing all users", 0.5).extra == (
        ("describe", 0.5), ("get", 0.5), ("list", 0.5), ("showing", -0.5),
    )  # fmt: skip
    assert expand("create a rule to remove users", 0.5).extra == ()
    assert expand("lorem ipsum", 0.5).extra == expand("make it", 0).extra == ()


def test_only_the_beginning_of_an_endless_request_is_read() -> None:
    assert len(rewrite("word " * 1_000_000)) <= LONGEST
    assert len(decompose(rewrite("create x and " * 100_000))) == MOST_STEPS


@pytest.mark.parametrize(
    ("operation", "verb"),
    [
        ("BatchGetItem", "get"),
        ("files.list", "list"),
        ("create-for-org", "create"),
        ("AdminDeleteUser", "delete"),
        ("Frobnicate", "frobnicate"),
        ("", ""),
    ],
)
def test_the_verb_of_an_operation(operation: str, verb: str) -> None:
    assert verb_of_operation(operation) == verb


def test_the_verbs_that_a_tool_for_a_step_may_have() -> None:
    assert verbs_of_request("deletes the table") == (("delete", 1.0),)
    assert dict(verbs_of_request("remove an item")) == {"remove": 1.0, "delete": 1.0}
    assert dict(verbs_of_request("to list users")) == {"list": 1.0, "describe": 0.5, "get": 0.5}
    assert verbs_of_request("the costs of my account this month") == ()
