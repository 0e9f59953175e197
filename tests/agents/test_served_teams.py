"""``shoal serve --model team:NAME``: the installed command, asked by the official client."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

COMMAND = Path(sys.executable).with_name("shoal")

PANEL = """
about = "Two readers and an editor."
channels = "star(editor)"
protocol = {turn = "all(but=editor)", reduce = "judge(editor)"}
member = [
  {name = "reader", copies = 2, role = "Read it.", max_tokens = 6, temperature = 0.9},
  {name = "editor", role = "Sum it up.", max_tokens = 8},
]
"""
COURT = """
protocol = {until = "rounds(1)"}
member = [{name = "host", model = "human"}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the team files are."""
    folder = tmp_path_factory.mktemp("teams")
    (folder / "panel.toml").write_text(f'name = "panel"\n{PANEL}')
    (folder / "court.toml").write_text(f'name = "court"\n{COURT}')
    return folder


def serving(folder: Path, team: str, model: Path) -> Iterator[str]:
    """The address of ``shoal serve``, which is stopped as a user would stop it."""
    server = subprocess.Popen(
        [COMMAND, "serve", "--model", f"team:{team}@{model}", "--dtype", "fp32", "--port", "0",
         "--kv-memory", "16"],
        cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stderr is not None
    try:
        told = ""
        for line in server.stderr:
            told += line
            if found := re.search(r"http://127\.0\.0\.1:\d+/v1", line):
                yield found[0]
                break
        else:
            raise AssertionError(told)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


@pytest.fixture(scope="module")
def panel(folder: Path, tiny_model: Path) -> Iterator[openai.OpenAI]:
    for url in serving(folder, "panel.toml", tiny_model):
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            yield client


def test_the_team_is_listed_as_a_model(panel: openai.OpenAI) -> None:
    assert [model.id for model in panel.models.list()] == ["team:panel"]


def test_an_answer_is_a_run_and_its_usage_the_sum_of_all_turns(panel: openai.OpenAI) -> None:
    messages = [
        {"role": "system", "content": "Fish swim in schools. " * 20},
        {"role": "user", "content": "What do fish do?"},
    ]
    done = [
        panel.chat.completions.create(model="team:panel", messages=messages, seed=seed)  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    ]
    texts = [one.choices[0].message.content for one in done]
    assert texts[0] == texts[1]
    assert texts[0]
    assert done[0].choices[0].finish_reason == "stop"
    usage = done[0].usage
    assert usage is not None
    assert usage.prompt_tokens > 3 * len(messages[0]["content"])  # a token a byte, three turns
    assert 3 <= usage.completion_tokens <= 6 + 6 + 8
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None
    assert usage.prompt_tokens_details.cached_tokens > 2 * len(messages[0]["content"])


def test_an_answer_can_be_streamed(panel: openai.OpenAI) -> None:
    ask = {"model": "team:panel", "messages": [{"role": "user", "content": "Go."}], "seed": 3}
    whole = panel.chat.completions.create(**ask)  # type: ignore[call-overload]
    pieces = panel.chat.completions.create(**ask, stream=True)  # type: ignore[call-overload]
    texts = [choice.delta.content or "" for piece in pieces for choice in piece.choices]
    assert "".join(texts) == whole.choices[0].message.content


def test_what_a_team_cannot_promise_is_refused_with_a_sentence(panel: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="A team cannot tell log-probabilities"):
        panel.chat.completions.create(
            model="team:panel", messages=[{"role": "user", "content": "Go."}], logprobs=True
        )
    with pytest.raises(openai.NotFoundError):
        panel.chat.completions.create(
            model="team:nobody", messages=[{"role": "user", "content": "Go."}]
        )


def test_a_person_cannot_be_asked_through_a_server(folder: Path, tiny_model: Path) -> None:
    for url in serving(folder, "court.toml", tiny_model):
        with (
            openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
            pytest.raises(openai.APIStatusError, match="host is a person, but nobody can be asked"),
        ):
            client.chat.completions.create(
                model="team:court", messages=[{"role": "user", "content": "Guilty?"}]
            )


@pytest.mark.parametrize(
    ("team", "sentence"),
    [
        ("team:readingroom", "Did you mean 'reading-room'?"),
        ("team:absent.toml", "Cannot read the team file"),
    ],
)
def test_a_team_that_is_not_there_is_refused_at_once(
    folder: Path, team: str, sentence: str
) -> None:
    done = subprocess.run(
        [COMMAND, "serve", "--model", team, "--port", "0"],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
