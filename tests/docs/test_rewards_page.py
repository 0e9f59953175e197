"""The page on rewards names what there is, and its examples hold."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from shoal.envs.calls import DIALECTS
from shoal.training.config import parse_run
from shoal.training.rewards import VARIANTS, ToolCallReward

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_names_every_variant_and_dialect() -> None:
    assert [name for name in (*VARIANTS, *DIALECTS) if f"`{name}`" not in PAGE] == []


def test_its_run_files_are_run_files() -> None:
    first, second = (parse_run(tomllib.loads(block)) for block in blocks("toml"))
    assert first.reward.kind == "tool-call" and first.reward.weights == {"format": 0.5}
    assert second.policy.adapter == "lora"


def test_its_reward_is_one() -> None:
    (block,) = blocks("python")
    made: dict[str, object] = {}
    exec(block, made)
    reward = made["mine"]
    assert isinstance(reward, ToolCallReward)
    assert reward.bounds(0.0) == (-3, 4) and reward.bounds(1.0) == (-4, 4.2)
