"""Every example runs as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_no_example_is_left_out() -> None:
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".toml")}
    assert found == set(ENDS)


ENDS = {
    "batch_questions.py": "prompt tokens asked for",
    "carried_words.py": "were moved instead of computed.",
    "choose.py": "asked for",
    "contribute.py": "settlements are in the log",
    "moved_documents.py": "of them computed again",
    "panel.py": "tokens asked for",
    "peers_sharded.py": "1 model on 2 nodes of 2 ranks",
    "peers_train.py": "1 result among 3 peers",
    "mechanisms.py": "3 mechanisms ran.",
    "find_tools.py": "searches for 2 agents over one index",
    "hire.py": "settlements are in the log",
    "hire_models.py": "12 sums were asked about",
    "relay.py": "4 settlements are in the log",
    "tools.py": "prompt tokens were known already",
    "two_depths.py": "3 models in",
    "two_voices.py": "2 adapters over one model",
    "score_calls.py": "4 answers scored.",
    "share_prompts.py": "of their largest element.",
    "settle.py": "settlements are in the log",
    "cloud-team.toml": "What changed in the cloud",
    "newsroom.toml": "Everything is in",
    "taxi.toml": "30/30",
    "tool_calls.toml": "30/30",
}


@pytest.mark.model
@pytest.mark.parametrize("name", ENDS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    text = EXAMPLES / "documents" / "jargon" / "05-jargon-construction.md"
    how = {
        ".py": [sys.executable, str(EXAMPLES / name)],
        ".toml": [sys.executable, "-m", "shoal", "run", str(EXAMPLES / name), "-i", str(text)],
        "taxi.toml": [sys.executable, "-m", "shoal", "train", str(EXAMPLES / name)],
        "tool_calls.toml": [sys.executable, "-m", "shoal", "train", str(EXAMPLES / name)],
    }
    done = subprocess.run(
        how.get(name) or how[Path(name).suffix], cwd=tmp_path, capture_output=True, text=True,
        timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ENDS[name] in done.stdout
