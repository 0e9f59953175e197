"""The claim's parts on small inputs, and its smoke run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.claims import find_system, runner


@pytest.fixture(scope="module")
def parts() -> ModuleType:
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("toolshed"), checkout)
    return sys.modules["toolbench"]


def test_examples_are_requests_with_known_answers_that_few_documents_repeat(parts) -> None:
    from toolbench import corpus

    specs = corpus.operations(["s3", "iam", "efs"])
    some = corpus.examples(specs)
    assert len(some) == 69 + 68 + 13  # as counted in the files of botocore 1.44.5
    known = {spec.name: spec for spec in specs}
    repeated = [one for one in some if corpus.repeats(one, known[one.tool])]
    assert 0 < len(repeated) < 0.1 * len(some)  # "To delete an object" stands in the text as well
    assert {one.half for one in some if ".s3." in one.tool} in ({0}, {1})


def test_places_are_those_of_the_ranking(parts) -> None:
    from shoal.tools.retrieval.index import ToolIndex
    from toolbench import corpus, ranking

    specs = corpus.operations(["sqs"])
    index = ToolIndex()
    index.add(specs)
    queries = [("create a queue", "aws.sqs.CreateQueue"), ("delete a queue", "aws.sqs.TagQueue")]
    first, second = ranking.places(index, queries)
    assert first == 0 and second > 0
    theirs = ranking.plain_bm25(specs, [spec.description for spec in specs], queries)
    assert theirs.shape == (2,) and (theirs <= ranking.DEEP).all()
    at = np.array([0, 4, 5, ranking.DEEP])
    assert ranking.recall(at, 5) == 0.5
    assert ranking.ndcg(at) == pytest.approx((1 + 1 / np.log2(6) + 1 / np.log2(7)) / 4)


def test_every_arm_of_several_needs_has_the_same_budget(parts) -> None:
    from shoal.tools.retrieval.index import ToolIndex
    from toolbench import corpus, multi

    specs = corpus.operations(["s3", "iam"])
    index = ToolIndex()
    index.add(specs)
    some = corpus.examples(specs)
    wishes = multi.wishes(some, 5, np.random.default_rng(0), described=False)
    for wish in wishes:
        assert len(set(wish.tools)) == 3 and all(part in wish.text for part in wish.parts)
    single, rules, oracle = (
        multi.recalls(index, wishes, arm, 6).mean() for arm in ("single", "rules", "oracle")
    )
    assert 0 <= single <= 1 and rules > 0.4 and oracle > 0.4
    assert index.settings.stages[2] == "decompose"


def test_the_smoke_run_holds(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["reproduce", "toolshed", "--smoke", "--out", str(tmp_path), "--json"]
    )
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["mode"] == "smoke"
    failed = [v["claim"] for v in result["verdicts"] if not v["holds"]]
    assert failed == []
    arms = {arm["name"]: arm["metrics"] for arm in result["arms"]}
    assert arms["no model"]["recall_at_20"] > arms["plain BM25"]["recall_at_20"]
