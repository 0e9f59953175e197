"""Whole runs: learning, resuming bit for bit, refusing what cannot work."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import Walk

from shoal.core.errors import ConfigError, InputError, ShoalError
from shoal.core.runs import Run
from shoal.training.checkpoints import checkpoints, restore, save
from shoal.training.config import RunConfig, parse_run, read_run_file
from shoal.training.loop import Trainer
from shoal.training.metrics import Metrics, read_metrics
from shoal.training.run import start, train
from shoal.training.samplers import DirectSampler, Sampler, StaleSampler, canary
from shoal.training.setup import build
from shoal.training.trace import by_episode, find_group, groups_of

SMALL: dict[str, Any] = {
    "iterations": 4,
    "environment": {"name": "taxi", "options": {"max_steps": 6}, "train": [0, 8]},
    "groups": {"tasks": 2, "episodes": 3},
    "policy": {"hidden": 16, "layers": 1, "heads": 2, "context": 64},
    "sampler": {"max_tokens": 1},
    "log_every": 1,
}


def small(**changes: Any) -> RunConfig:
    return parse_run(SMALL | changes)


def walking(config: RunConfig, **more: Any) -> Trainer:
    """A trainer in the walk, whose rewards are found at once."""
    return build(config, make=Walk, **more)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.policy.trained.items()}


def run(trainer: Trainer, iterations: int) -> list[dict[str, float]]:
    async def go() -> list[dict[str, float]]:
        return [dict((await trainer.iterate()).metrics) for _ in range(iterations)]

    return asyncio.run(go())


def test_training_solves_a_walk() -> None:
    config = small(iterations=30, optimiser={"lr": 1e-2}, groups={"tasks": 4, "episodes": 8})
    told = run(walking(config), 30)
    assert told[0]["success"] < 0.5 < 0.9 < told[-1]["success"]


def test_the_same_run_file_gives_the_same_bits() -> None:
    first, second = walking(small()), walking(small())
    run(first, 3)
    run(second, 3)
    assert all(torch.equal(a, weights(second)[name]) for name, a in weights(first).items())


def test_gradient_accumulation_does_not_change_the_update() -> None:
    whole = walking(small(groups={"tasks": 4, "episodes": 8}))
    parts = walking(small(groups={"tasks": 4, "episodes": 8}, optimiser={"micro": 8}))
    told, cut = run(whole, 1)[0], run(parts, 1)[0]
    assert cut["loss"] == pytest.approx(told["loss"], abs=1e-6)
    assert cut["gradient_norm"] == pytest.approx(told["gradient_norm"], rel=1e-5)


def test_minibatches_and_epochs_are_steps_of_their_own() -> None:
    trainer = walking(small(optimiser={"minibatch": 4, "epochs": 2}))
    told = run(trainer, 1)[0]
    rows = told["steps"] * 6
    assert told["updates"] == 2 * math.ceil(rows / 4)
    assert trainer.learner.optimiser.taken == told["updates"]


def test_a_gradient_that_is_not_finite_is_skipped_and_told() -> None:
    trainer = walking(small())
    parameter = next(iter(trainer.policy.trained.values()))
    parameter.grad = torch.full_like(parameter, float("nan"))
    before = weights(trainer)
    told = trainer.learner.optimiser.step()
    assert told["skipped_steps"] == 1 and trainer.learner.optimiser.skipped == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(trainer).items())


class Deaf(DirectSampler):
    """Says it took the weights, and goes on with a copy of the old ones."""

    def __init__(self, trained: Any) -> None:
        super().__init__(trained.frozen())
        self._said = trained.version

    @property
    def version(self) -> int:
        return self._said

    async def update(self, policy: Any) -> None:
        self._said = policy.version


def deaf_trainer(sampler: type[Deaf]) -> Trainer:
    trainer = walking(small(optimiser={"lr": 1e-2}, groups={"tasks": 4, "episodes": 8}))
    made: Sampler = sampler(trainer.policy)
    trainer.sampler = trainer.runner.sampler = made
    return trainer


def test_weights_that_were_never_served_are_noticed() -> None:
    with pytest.raises(StaleSampler, match="its answers have not changed"):
        run(deaf_trainer(Deaf), 3)


def test_a_version_that_does_not_advance_is_noticed() -> None:
    class Stuck(Deaf):
        async def update(self, policy: Any) -> None:
            """Nothing."""

    with pytest.raises(StaleSampler, match="answers with version 0 of the weights after version 1"):
        run(deaf_trainer(Stuck), 3)


def test_rows_older_than_the_limit_are_dropped_and_counted() -> None:
    trainer = walking(small(correction={"max_lag": 1}))
    rollout = asyncio.run(trainer.runner.run([0, 1], 3))
    trainer.policy.version = 1
    rows, _, told = trainer.credit(rollout)
    assert len(rows) == len(rollout.rows) and told["lag.1"] == len(rows)
    trainer.policy.version = 2
    with pytest.raises(ShoalError, match="are more than 1 updates old"):
        trainer.credit(rollout)


def test_rows_of_a_moved_policy_are_weighed_by_the_trainers_own_log_probabilities() -> None:
    trainer = walking(small(groups={"tasks": 4, "episodes": 8}))
    rollout = asyncio.run(trainer.runner.run([0, 1, 2, 3], 8))
    with torch.no_grad():
        for tensor in trainer.policy.trained.values():
            tensor.mul_(1.5)
    trainer.policy.version += 1
    rows, credit, _ = trainer.credit(rollout)
    told = trainer.learner.learn(rows, credit, exact=True, name=0)
    assert told["mismatch.kl"] > 0


def test_a_penalty_towards_the_reference_starts_at_zero_and_grows() -> None:
    config = small(
        iterations=6, optimiser={"lr": 1e-2}, loss={"kl": "k3", "kl_weight": 0.1},
        groups={"tasks": 4, "episodes": 8},
    )  # fmt: skip
    told = run(walking(config), 6)
    assert told[0]["kl_reference"] == pytest.approx(0, abs=1e-6) and told[-1]["kl_reference"] > 1e-4


def test_a_penalty_in_the_reward_reaches_the_advantages() -> None:
    config = small(loss={"kl": "k1", "kl_weight": 0.5, "kl_in": "reward"})
    trainer = walking(config)
    rollout = asyncio.run(trainer.runner.run([0], 2))
    with torch.no_grad():
        for tensor in trainer.learner.reference.decoder.weights.values():  # type: ignore[union-attr]
            tensor.mul_(2.0)
    found = trainer.learner.penalised(rollout.rows)
    theirs = trainer.learner._logps(trainer.learner.reference, rollout.rows)  # type: ignore[arg-type]
    expected = [r.reward - 0.5 * (r.logprobs[0] - float(p))
                for r, p in zip(rollout.rows, theirs, strict=True)]  # fmt: skip
    assert [row.reward for row in found] == pytest.approx(expected)


def test_resampling_goes_on_until_enough_groups_are_alive() -> None:
    config = small(groups={"tasks": 2, "episodes": 3, "degenerate": "resample",
                           "resample_rounds": 3})  # fmt: skip
    told = run(build(config), 1)[0]  # in the taxi nothing is solved: all groups stay dead
    assert told["rows.kept"] == 0 and told["updates"] == 0
    assert told["env_steps"] == 3 * 2 * 3 * 6


def test_every_pass_plays_every_task_once() -> None:
    trainer = walking(small(environment={**SMALL["environment"], "train": [3, 10]}))
    laps = [[task for place in range(3 * lap, 3 * lap + 3) for task in trainer.tasks(place)]
            for lap in range(2)]  # fmt: skip
    for lap in laps:
        assert len(set(lap)) == 6 and set(lap) <= set(range(3, 10))
    assert laps[0] != laps[1]


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    through, first = walking(small()), walking(small())
    run(through, 4)
    run(first, 2)
    save(first, tmp_path)
    second = walking(small(seed=0))
    restore(second, checkpoints(tmp_path)[-1])
    assert canary(second.policy) == canary(first.policy)
    run(second, 2)
    assert all(torch.equal(a, weights(second)[name]) for name, a in weights(through).items())
    assert (second.done, second.env_steps) == (through.done, through.env_steps)


def test_a_run_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    first = walking(small())
    run(first, 2)
    path = save(first, tmp_path) / "weights.safetensors"
    policy = {**SMALL["policy"], "weights": str(path)}
    second = walking(small(seed=5, policy=policy))
    assert second.policy.version == 0
    for ours, theirs in zip(weights(second).values(), weights(first).values(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(InputError, match="are of another policy"):
        walking(small(policy={**policy, "hidden": 32}))
    with pytest.raises(InputError, match="cannot be read"):
        walking(small(policy={**policy, "weights": str(tmp_path / "none")}))


def test_old_checkpoints_make_room(tmp_path: Path) -> None:
    trainer = walking(small())
    for _ in range(4):
        run(trainer, 1)
        save(trainer, tmp_path, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["iteration-000003", "iteration-000004"]


def test_a_half_written_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / ".iteration-000003.half").mkdir()
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_of_another_policy_is_refused(tmp_path: Path) -> None:
    trainer = walking(small())
    run(trainer, 1)
    path = save(trainer, tmp_path)
    other = walking(small(policy={**SMALL["policy"], "hidden": 32}))
    with pytest.raises(InputError, match="is of another policy"):
        restore(other, path)


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    trainer = walking(small())
    run(trainer, 1)
    path = save(trainer, tmp_path)
    (path / "weights.safetensors").write_bytes(b"\0" * 4)
    with pytest.raises(InputError, match="cannot be read"):
        restore(walking(small()), path)


def test_ten_iterations_are_five_a_kill_and_five(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        textwrap.dedent("""
        iterations = 10
        checkpoint_every = 5
        [environment]
        name = "taxi"
        options = { max_steps = 8 }
        [groups]
        tasks = 2
        episodes = 4
        [policy]
        hidden = 16
        layers = 1
        heads = 2
        [sampler]
        max_tokens = 1
        [warm_start]
        updates = 60
        tasks = 32
        noise = 0.2
        lr = 1e-2
        """)
    )
    killer = textwrap.dedent("""
        import asyncio, os, signal, sys
        from pathlib import Path
        from shoal.core.runs import Run
        from shoal.training.config import read_run_file
        from shoal.training.run import start, train
        run = start(read_run_file(Path(sys.argv[1])), root=Path(sys.argv[2]))
        print(run.id, flush=True)
        def kill(done, of, metrics):
            if done == 7:
                os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(train(run, on_iteration=kill))
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", killer, str(config), str(tmp_path / "killed")],
        capture_output=True, text=True, env=environment, timeout=200, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    known = Run(killed.stdout.strip(), tmp_path / "killed" / killed.stdout.strip())
    assert [path.name for path in checkpoints(known.folder / "checkpoints")] == ["iteration-000005"]
    torch.set_num_threads(1)
    asyncio.run(train(known))
    whole = start(read_run_file(config), root=tmp_path / "whole")
    asyncio.run(train(whole))
    for name in ("weights.safetensors", "optimiser.safetensors", "counters.json"):
        ours, theirs = ((r.folder / "checkpoints" / "iteration-000010" / name).read_bytes()
                        for r in (known, whole))  # fmt: skip
        assert ours == theirs, name
    success = [[line.get("success") for line in read_metrics(r.folder)] for r in (known, whole)]
    assert success[0] == success[1] and len(success[0]) == 11


def test_an_interrupt_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    known = start(small(checkpoint_every=0), root=tmp_path)

    def interrupt(done: int, of: int, metrics: Any) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    ended = asyncio.run(train(known, on_iteration=interrupt))
    assert ended.done == 2 and not ended.finished
    assert [path.name for path in checkpoints(known.folder / "checkpoints")] == ["iteration-000002"]
    ended = asyncio.run(train(known))
    assert ended.done == 4 and ended.finished


def test_a_group_is_shown_with_its_credit(tmp_path: Path) -> None:
    known = start(small(iterations=2), root=tmp_path)
    asyncio.run(train(known))
    with known.log() as log:
        groups = groups_of(log)
        assert {number for number, _ in groups} == {1, 2}
        key, steps = find_group(log)
        assert key == list(groups)[-1]
        episodes = by_episode(steps)
        assert len(episodes) == 3 and all(len(one) == 6 for one in episodes.values())
        assert all(len(step.pieces) == len(step.logprobs) for step in steps)
        with pytest.raises(InputError, match="no group 99: 4 were logged"):
            find_group(log, 99)


def test_metrics_of_iterations_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        for n in range(4):
            metrics.write(n, {"reward": float(n), "odd": float("nan")})
    with Metrics(tmp_path, done=1) as metrics:
        metrics.write(2, {"reward": 9.0})
    assert read_metrics(tmp_path) == [
        {"iteration": 0, "reward": 0.0},
        {"iteration": 1, "reward": 1.0},
        {"iteration": 2, "reward": 9.0},
    ]


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Metrics(tmp_path) as metrics:
        for n in range(3):
            metrics.write(n, {"reward": n / 4, "groups.mixed": 0.5, "odd": math.nan})
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"reward", "groups/mixed"}
    assert [(one.step, one.value) for one in board.Scalars("reward")] == [
        (0, 0.0), (1, 0.25), (2, 0.5)
    ]  # fmt: skip


CALLS: dict[str, Any] = {
    "environment": {
        "name": "tool-world",
        "options": {"calls": [1, 1], "parameters": [1, 1], "offered": 1, "slips": 0.5},
        "train": [0, 50],
        "held_out": [1_000_000, 1_000_010],
    },
    "policy": {"hidden": 16, "layers": 1, "heads": 2, "context": 64},
    "sampler": {"max_tokens": 6},
    "groups": {"tasks": 4, "episodes": 4},
    "warm_start": {"updates": 60, "noise": 0.0, "tasks": 40, "rows": 16, "lr": 1e-2},
    "algorithm": {"name": "grpo"},
}


def test_a_run_file_names_the_reward_and_marks_are_told() -> None:
    config = small(**CALLS, reward={"kind": "tool-call", "variant": "dynamic"},
                   evaluation={"every": 1, "greedy": True})  # fmt: skip
    trainer = build(config)
    asyncio.run(trainer.warm_up())
    told = run(trainer, 2)[-1]
    assert {"marks.format", "marks.name", "marks.parameter", "marks.value"} <= told.keys()
    assert told["reward"] == pytest.approx(told["reward.format"] + told["reward.original"])
    held_out = asyncio.run(trainer.evaluate())
    assert {"held_out.greedy", "held_out.name", "held_out.greedy_exact"} <= held_out.keys()
    assert held_out["held_out.exact"] == held_out["held_out.success"]


def test_all_wrong_is_what_the_reward_gives_at_least() -> None:
    for name, least in (("coarse", -3.0), ("binary", 0.0)):
        trainer = build(small(**CALLS, reward={"kind": "tool-call", "variant": name}))
        assert trainer.runner.reward_min(0.5) == least
        told = run(trainer, 1)[0]  # from random weights nothing is right
        assert told["groups.all_wrong"] > 0.5


def test_parts_of_a_reward_may_be_scaled_apart() -> None:
    config = small(**CALLS | {"algorithm": {"name": "gdpo"}}, reward={"kind": "tool-call"})
    trainer = build(config)
    asyncio.run(trainer.warm_up())
    assert math.isfinite(run(trainer, 1)[0]["loss"])


def test_a_cut_off_last_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}\n{"iterat')
    assert read_metrics(tmp_path) == [{"iteration": 0}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": {"top_p": 0.9}}, "draw from a truncated distribution"),
        ({"sampler": {"top_k": 20}}, "draw from a truncated distribution"),
        ({"environment": {"name": "taxi", "train": [0, 9], "held_out": [8, 20]}}, "share seeds"),
        ({"environment": {"name": "taxi", "train": [5, 5]}}, "are none"),
        ({"groups": {"tasks": 9}}, "has only 8 tasks"),
        ({"warm_start": {"updates": 1, "tasks": 9}}, "warm_start.tasks is 9, .* only 8 tasks"),
        ({"grups": {}}, "Did you mean 'groups'"),
        ({"optimiser": {"learning_rate": 1}}, "sets optimiser.learning_rate, which there is not"),
        ({"optimiser": {"lr": -1}}, "optimiser.lr cannot be used"),
        ({"loss": {"kind": "ppo"}}, "loss.kind cannot be used"),
    ],
)
def test_a_run_file_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": {"name": "taxy"}}, "Did you mean 'taxi'"),
        ({"environment": {"name": "taxi", "options": {"steps": 1}}}, "no option 'steps'"),
        ({"algorithm": {"name": "ppo"}}, "no algorithm 'ppo'"),
        ({"sampler": {"kind": "remote"}}, "a way to hand it new weights"),
        ({"reward": {"kind": "tool-call", "variant": "corse"}}, "Did you mean 'coarse'"),
        ({"reward": {"kind": "tool-call", "matcher": "best"}}, "no matcher 'best'"),
    ],
)
def test_names_there_are_not_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(small(**changes))


def test_copo_in_a_world_without_answers_is_refused() -> None:
    with pytest.raises(ConfigError, match="COPO compares final answers, and taxi has none"):
        run(build(small(algorithm={"name": "copo"})), 1)


def test_a_run_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot read the run file"):
        read_run_file(tmp_path / "none.toml")


def test_a_warm_start_stops_at_the_success_it_was_asked_for() -> None:
    config = small(
        iterations=1, warm_start={"updates": 400, "tasks": 8, "noise": 0.1, "lr": 1e-2,
                                  "until": 0.6},
    )  # fmt: skip
    told = asyncio.run(walking(config).warm_up())
    assert told["warm_start.success"] >= 0.6 and told["warm_start.updates"] < 400


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_after_a_warm_start_nothing_old_is_served(dtype: str) -> None:
    config = small(
        **{name: part for name, part in CALLS.items() if name != "sampler"},
        sampler={"kind": "engine", "dtype": dtype, "max_tokens": 6},
        evaluation={"every": 1, "temperature": 0.0},
    )

    async def go() -> tuple[float, float, int]:
        trainer = build(config)
        await trainer.evaluate()  # prompts are in the engine's cache now
        await trainer.warm_up()
        ours = (await trainer.evaluate())["held_out.return"]
        version = trainer.sampler.version
        await trainer.sampler.close()
        trainer.runner.sampler = DirectSampler(trainer.policy)
        theirs = (await trainer.evaluate())["held_out.return"]
        assert version == trainer.policy.version
        return ours, theirs, version

    ours, theirs, version = asyncio.run(go())
    assert version == 1 and ours == pytest.approx(theirs, abs=0.15 if dtype == "bf16" else 1e-9)


def test_without_an_expert_there_is_no_warm_start() -> None:
    config = small(
        environment={"name": "textarena", "train": [0, 8]}, warm_start={"updates": 5, "tasks": 8},
    )  # fmt: skip
    trainer = build(config, policy=walking(small()).policy)
    with pytest.raises(ConfigError, match="has no expert to imitate"):
        asyncio.run(trainer.warm_up())
