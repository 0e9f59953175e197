"""The documentation builds, its examples run, and it names what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.agents import packaged_teams, parse_team
from shoal.agents.channels import topologies, views
from shoal.agents.failures import failure_policies
from shoal.agents.reducers import reducers
from shoal.agents.stops import stop_rules
from shoal.agents.turns import turn_rules

ROOT = Path(__file__).parents[2]
TEAMS = (ROOT / "docs" / "teams.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.parametrize(
    "registry",
    [topologies, views, turn_rules, stop_rules, reducers, failure_policies],
    ids=lambda registry: registry.family,
)
def test_the_page_on_teams_names_every_rule(registry):
    missing = [name for name in registry.names() if not re.search(rf"`{name}[`(]", TEAMS)]
    assert missing == []


def test_the_page_on_teams_names_every_packaged_team():
    assert [team.name for team in packaged_teams() if f"`{team.name}`" not in TEAMS] == []


def test_the_example_in_toml_is_a_team_and_the_one_in_python_runs():
    assert parse_team(blocks(TEAMS, "toml")[0]).name == "reading-room"
    done = subprocess.run(
        [sys.executable, "-c", blocks(TEAMS, "python")[0]], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "A text. done\n"), done.stderr


def test_the_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Think-on-Graph 3.0" in (tmp_path / "claims" / "index.html").read_text(encoding="utf-8")
