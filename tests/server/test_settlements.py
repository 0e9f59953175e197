"""One number out of sealed reports, over HTTP; a bad report names its agent."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from live_server import running

from shoal.engine.scripted import ScriptedEngine


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(ScriptedEngine("a")) as base:
        yield f"{base}/settlements"


def post(url: str, **body: object) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(url, content=json.dumps(body), headers=headers)


CAPS = {"anna": 10, "ben": 10, "carl": 10, "dora": 10, "emil": 100}


def test_reports_are_settled_by_the_uniform_phantom_or_another_rule(url: str) -> None:
    got = post(url, reports=CAPS, high=100).json()
    assert got["decision"]["outcome"] == 20
    assert got["opening"]["agents"] == list(CAPS)
    assert post(url, reports=CAPS, high=100, rule="mean").json()["decision"][
        "outcome"
    ] == pytest.approx(28)
    absent = post(url, reports={**CAPS, "emil": None}, high=100).json()
    assert (absent["decision"]["outcome"], absent["absent"]) == (10, ["emil"])


@pytest.mark.parametrize("value", [101, -1, "ten", [1], True, float("nan"), 10**400])
def test_a_report_that_cannot_count_is_422_and_names_its_agent(url: str, value: object) -> None:
    answer = post(url, reports={**CAPS, "emil": value}, high=100)
    error = answer.json()["error"]
    assert answer.status_code == 422, error
    assert error["param"] == "reports.emil"
    assert "emil" in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"reports": {}}, "at least 1 item"),
        ({"reports": CAPS, "high": -1}, "interval"),
        ({"reports": CAPS, "low": -1.7e308, "high": 1.7e308}, "interval"),
        ({"reports": CAPS, "rule": "mode"}, "mode"),
        ({"reports": {"anna": None}}, "at least one report"),
        ({"reports": CAPS, "weights": {"emil": 9}}, "weights"),
        ({"reports": {"anna": [0.5, 0.5]}, "rule": "independent-markets"}, "two or more names"),
    ],
)
def test_other_bad_input_is_400(url: str, body: dict, words: str) -> None:
    answer = post(url, **body)
    assert answer.status_code == 400, answer.text
    assert words in answer.text
