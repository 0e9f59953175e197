"""``shoal tools call`` and ``serve``: faults are sentences, results are what came back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.errors import ConfigError, InputError
from shoal.core.records import ToolSpec
from shoal.envs.company import office
from shoal.tools import catalogue, sources
from shoal.tools.catalogue import Catalogue
from shoal.tools.mcp import connect

pytest.importorskip("mcp")

SERVER = f"{sys.executable} {Path(__file__).parents[1] / 'tools' / 'hostile_mcp_server.py'} none"
BESIDE = ["--no-company", "--mcp", f"calc={SERVER}"]


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache that holds a small catalogue of AWS."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    from shoal.tools.importers.botocore import from_botocore

    specs = from_botocore(sources.botocore_data(), services=("sqs",))
    path = tmp_path / "tools" / "aws-0000000000000000.sqlite"
    catalogue.write(specs, path).close()
    monkeypatch.setattr(sources, "load", lambda *given: Catalogue([path]))
    monkeypatch.setattr(office, "catalogue", lambda given: (Catalogue([path]), lambda query, k: []))
    yield
    office.close()


def run(*given: str) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(app, ["tools", *given])
    return done.exit_code, done.stdout, done.exception


def test_a_tool_of_another_server_is_called() -> None:
    code, out, _ = run("call", "calc.work", *BESIDE)
    assert (code, out.strip()) == (0, "done")


def test_what_destroys_must_be_allowed_in_so_many_words() -> None:
    code, out, _ = run("call", "calc.drop", *BESIDE, "--json")
    assert code == 1
    assert json.loads(out)["fault"]["kind"] == "not_permitted"
    code, out, _ = run("call", "calc.drop", *BESIDE, "--may", "destroy")
    assert (code, out.strip()) == (0, "done")
    code, out, _ = run("call", "calc.drop", *BESIDE, "--may", "destroy", "--dry-run")
    assert (code, out.strip()) == (0, "Dry run: calc.drop would destroy; nothing was sent.")


@pytest.mark.parametrize(
    ("given", "kind", "sentence"),
    [
        (["call", "x", "{"], InputError, "no JSON"),
        (["call", "x", "[1]"], InputError, "a JSON object"),
        (["call", "x", "--may", "everything"], ConfigError, "read, write or destroy"),
        (["call", "x", "--no-company", "--mcp", "calc"], ConfigError, "NAME=URL"),
        (["call", "x", "--no-company", "--mcp", "c=/no/program"], InputError, "cannot be reached"),
        (["serve", "--listing", "some"], ConfigError, "gateway or all"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(given: list[str], kind: type, sentence: str) -> None:
    code, _, error = run(*given)
    assert code != 0
    assert isinstance(error, kind)
    assert sentence in str(error)


def test_a_tool_of_the_cloud_is_called(imported: None) -> None:
    pytest.importorskip("moto")
    code, out, _ = run("call", "aws.sqs.CreateQueue", '{"QueueName": "jobs"}')
    assert code == 0
    assert json.loads(out)["QueueUrl"].endswith("/jobs")
    code, out, _ = run("call", "aws.sqs.CreateQueue", '{"QueueName": 3}', "--json")
    assert code == 1
    assert json.loads(out)["fault"]["path"] == "$.QueueName"


async def test_serving_over_stdin_and_stdout() -> None:
    command = [sys.executable, "-m", "shoal", "tools", "serve", *BESIDE]
    async with connect("here", command, timeout=60) as remote:
        assert remote.tools.names == (
            "here.find_tools",
            "here.describe_tool",
            "here.call_tool",
            "here.read_result",
        )
        given = {"name": "calc.work", "arguments": {}}
        text = await remote.call(remote.tools["here.call_tool"], given, "k")
        assert text.splitlines()[1] == "done"
        found = await remote.call(remote.tools["here.find_tools"], {"query": "work"}, "k")
        assert found.startswith("calc.work")


def test_a_spec_keeps_its_version_whether_served_or_not() -> None:
    spec = ToolSpec("a", "b")
    assert spec.version == ToolSpec("a", "b", served=False).version
