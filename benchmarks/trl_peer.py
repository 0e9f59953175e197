"""GRPO in shoal and in TRL: the same small Llama, prompts, rewards, settings and seeds, on a CPU.

    pip install -e '.[peers]'
    python benchmarks/trl_peer.py [--seeds 5] [--updates 40] [--out DIR] [--json]

The task: a text of 240 words, and at its end the word to write; the reward is the share of 32 words
that are it. Every update plays four tasks with eight answers each, all of tasks not seen before, so
the reward before each update is one of held-out tasks. Each arm and seed is a process of its own
with one thread, and arms alternate; what is timed is a whole update, answers included. Both begin
with the same weights, and read the same tokens (checked).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal.core.errors import MissingExtra
from shoal.core.rng import generator
from shoal.core.stats import Interval, difference_interval, ratio_interval
from shoal.envs.protocol import Transition
from shoal.training.config import RunConfig, parse_run
from shoal.training.loop import Trainer
from shoal.training.setup import build

TEXT, ANSWER = 240, 32  # words
TASKS, EPISODES = 4, 8
WANTED = [f"w{letter}" for letter in "abcdefghijklmnop"]
FILLER = [first + second for first in "bcdfgh" for second in "abcdefgh"]
LEARNING = {"lr": 2e-3, "max_norm": 1.0}
ARMS = ("shoal", "shoal, nothing shared", "TRL")
START = "start"
WARM = 2
"""Updates that are not timed."""


@dataclass(frozen=True)
class Run:
    """One arm on one seed, by update: seconds, those outside of drawing answers, mean reward.

    held_out is the mean reward on other tasks in the end, by the same sampler for all arms.
    """

    wall: list[float]
    cpu: list[float]
    learning: list[float]
    reward: list[float]
    held_out: float

    def mean(self, part: str) -> float:
        """Mean seconds of a timed update."""
        values: list[float] = getattr(self, part)
        return statistics.fmean(values[WARM:])


class Writing:
    """Write the word that a long text ends with."""

    name = "writing"
    instructions = "Write the last word again and again."
    reward_min, reward_max = 0.0, 1.0
    max_steps = 1
    answers = blocking = False
    final_answer = None

    def __init__(self) -> None:
        self._seed = 0

    def reset(self, seed: int) -> str:
        self._seed = seed
        return text_of(seed)

    def step(self, action: str) -> Transition:
        reward = score(action, wanted_of(self._seed))
        return Transition("", reward, terminated=True, solved=reward == 1)

    def state_key(self) -> Hashable:
        return self._seed

    def admissible_actions(self) -> tuple[str, ...]:
        return tuple(" ".join([word] * ANSWER) for word in WANTED)

    def expert_action(self) -> str:
        return " ".join([wanted_of(self._seed)] * ANSWER)

    def words(self) -> tuple[str, ...]:
        return (*WANTED, *FILLER)

    def snapshot(self) -> Any:
        return self._seed

    def restore(self, snapshot: Any) -> None:
        self._seed = snapshot

    def close(self) -> None:
        """Nothing is held."""


def text_of(task: int) -> str:
    """The words of a task."""
    filler = generator("writing", task).choice(FILLER, TEXT)
    return " ".join([*filler, wanted_of(task)])


def wanted_of(task: int) -> str:
    """The word to write."""
    return WANTED[int(generator("wanted", task).integers(len(WANTED)))]


def score(text: str, wanted: str) -> float:
    """Share of the words asked for that are the wanted one."""
    return min(1.0, text.split().count(wanted) / ANSWER)


def settings(seed: int, updates: int, *, share: str = "auto") -> RunConfig:
    """The run file."""
    return parse_run(
        {
            "seed": seed,
            "iterations": updates,
            "environment": {
                "name": "writing",
                "train": [0, updates * TASKS],
                "held_out": [1_000_000, 1_000_032],
            },
            "groups": {"tasks": TASKS, "episodes": EPISODES},
            "context": {"history": 0},
            "policy": {"hidden": 96, "layers": 3, "heads": 4, "context": TEXT + ANSWER + 8},
            "sampler": {"max_tokens": ANSWER},
            "algorithm": {"name": "grpo"},
            "optimiser": LEARNING,
            "warm_start": {"updates": 80, "noise": 0.5, "tasks": 32, "rows": 32, "lr": 2e-3},
            "forward": {"share": share},
        }
    )


# -- one arm in a process of its own ------------------------------------------------------------


def begin(seed: int, updates: int, start: Path) -> None:
    """Imitate for a while, and keep the weights that all arms of a seed begin with."""
    from safetensors.torch import save_file

    trainer = build(settings(seed, updates), make=Writing)
    asyncio.run(trainer.warm_up())
    save_file({name: t.detach() for name, t in trainer.policy.trained.items()}, start)


def work(arm: str, seed: int, updates: int, start: Path) -> Run:
    """Train one arm on one seed."""
    from safetensors.torch import load_file

    from shoal.training.policies import set_weights

    share = "never" if arm.endswith("nothing shared") else "auto"
    trainer = build(settings(seed, updates, share=share), make=Writing)
    set_weights(trainer.policy, load_file(start))
    return trl(trainer, seed, updates) if arm == "TRL" else asyncio.run(shoal(trainer, updates))


async def shoal(trainer: Trainer, updates: int) -> Run:
    """This library."""
    wall, cpu, learning, reward = [], [], [], []
    for _ in range(updates):
        began, worked = time.perf_counter(), time.process_time()
        metrics = (await trainer.iterate()).metrics
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - worked)
        learning.append(metrics["seconds.update"])
        reward.append(metrics["reward"])
    held_out = (await trainer.evaluate())["held_out.return"]
    return Run(wall, cpu, learning, reward, held_out)


def trl(trainer: Trainer, seed: int, updates: int) -> Run:
    """TRL's GRPOTrainer on the same weights and tasks, in the same order."""
    try:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise MissingExtra("The comparison needs TRL and", "peers") from error
    import torch

    from shoal.training.export import export, unfused

    policy = trainer.policy
    tasks = [task for place in range(updates) for task in trainer.tasks(place)]
    wall, cpu, drawing = list[float](), list[float](), [0.0]

    class Timed(GRPOTrainer):
        """Also says how long answers took."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            began = time.perf_counter()
            found = super()._generate_and_score_completions(inputs)
            drawing[-1] += time.perf_counter() - began
            return found

    class Clock(TrainerCallback):
        """Times whole updates."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wall.append(time.perf_counter() - self.began[0])
            cpu.append(time.process_time() - self.began[1])
            drawing.append(0.0)

    def reward(completions: list[str], task: list[int], **_: Any) -> list[float]:
        return [score(text, wanted_of(at)) for text, at in zip(completions, task, strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        export(policy, Path(folder))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        end = policy.tokenizer.decode([policy.end], special=True)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=f"{folder}/tokenizer.json", eos_token=end, pad_token=end
        )
        texts = [text_of(task) for task in tasks]
        ours = [policy.tokenizer.encode(text) for text in texts[:TASKS]]
        if tokenizer(texts[:TASKS])["input_ids"] != ours:
            raise SystemExit("TRL would read other tokens than shoal: nothing can be compared.")
        config = GRPOConfig(
            output_dir=folder,
            seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=TASKS * EPISODES,
            num_generations=EPISODES,
            max_steps=updates,
            max_completion_length=ANSWER,
            shuffle_dataset=False,
            learning_rate=LEARNING["lr"],
            max_grad_norm=LEARNING["max_norm"],
            adam_beta2=0.99,  # as shoal
            weight_decay=0.0,
            lr_scheduler_type="constant",
            beta=0.0,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        learner = Timed(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": texts, "task": tasks}),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        learner.train()
    told = [entry["reward"] for entry in learner.state.log_history if "reward" in entry]
    learned = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in unfused(policy):
            tensor.copy_(learned[name])
    held_out = asyncio.run(trainer.evaluate())["held_out.return"]
    learning = [whole - part for whole, part in zip(wall, drawing, strict=False)]
    return Run(wall, cpu, learning, told, held_out)


def run(arm: str, seed: int, updates: int, start: Path) -> Run:
    """The same in a process of its own."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as out:
        alone(arm, seed, updates, start, Path(out.name))
        found = Run(**json.load(out))
    print(
        f"  seed {seed}  {arm:<24}{found.mean('wall'):>7.2f} s an update, reward "
        f"{found.reward[0]:.3f} to {found.reward[-1]:.3f}",
        file=sys.stderr,
    )
    return found


def alone(arm: str, seed: int, updates: int, start: Path, result: Path) -> None:
    """Work in a process with one thread, which asks nobody on the network."""
    command = [sys.executable, __file__, "--work", arm, "--seed", str(seed)]
    command += ["--updates", str(updates), "--start", str(start), "--result", str(result)]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **quiet}
    )
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-2000:]}")


# -- what came of it ------------------------------------------------------------------------------


def area(one: Run) -> float:
    """Mean reward over the updates."""
    return float(np.mean(one.reward))


def table(runs: dict[str, list[Run]]) -> Iterator[str]:
    """Lines of a Markdown table; ratios and differences are paired by seed."""
    yield "| arm | wall s | CPU s | of it learning | reward over updates | held out in the end |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for arm, each in runs.items():
        yield (
            f"| {arm} | {_mean(each, 'wall'):.3f} | {_mean(each, 'cpu'):.3f} "
            f"| {_mean(each, 'learning'):.3f} "
            f"| {statistics.fmean(map(area, each)):.3f} "
            f"| {statistics.fmean(one.held_out for one in each):.3f} |"
        )
    yield ""
    ours, theirs = runs["shoal"], runs["TRL"]
    for part in ("wall", "cpu", "learning"):
        for arm in ("TRL", "shoal, nothing shared"):
            found = ratio_interval(
                [one.mean(part) for one in runs[arm]], [one.mean(part) for one in ours]
            )
            yield f"- {part}, {arm} over shoal: {_shown(found)}"
    gain = difference_interval([area(one) for one in ours], [area(one) for one in theirs])
    yield f"- reward over updates, shoal - TRL: {_shown(gain)}"


def _mean(each: Sequence[Run], part: str) -> float:
    return statistics.fmean(one.mean(part) for one in each)


def _shown(found: Interval) -> str:
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """Reward over updates, and over CPU seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    updates, seconds = figure.subplots(1, 2, sharey=True)
    for arm, each in runs.items():
        rewards = np.array([one.reward for one in each])
        spent = np.cumsum(np.array([one.cpu for one in each]).mean(axis=0))
        (line,) = updates.plot(rewards.mean(axis=0), label=arm)
        updates.fill_between(
            range(rewards.shape[1]), rewards.min(axis=0), rewards.max(axis=0), alpha=0.12
        )
        seconds.plot(spent, rewards.mean(axis=0), color=line.get_color(), label=arm)
    updates.set(xlabel="updates", ylabel="reward on tasks not seen before", ylim=(0, 1))
    seconds.set(xlabel="CPU seconds")
    for panel in (updates, seconds):
        panel.grid(alpha=0.25)
        panel.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def keep(runs: dict[str, list[Run]], folder: Path) -> None:
    """Write the table and the plot of the seeds there are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trl.md").write_text("\n".join(table(runs)) + "\n", encoding="utf-8")
    draw(runs, folder / "trl.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="2 at the least")
    parser.add_argument("--updates", type=int, default=40, help="8 at the least")
    parser.add_argument("--out", type=Path, help="folder for a plot and a table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work == START:
        begin(options.seed, options.updates, options.start)
        return
    if options.work:
        found = work(options.work, options.seed, options.updates, options.start)
        options.result.write_text(json.dumps(asdict(found)))
        return
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            start = Path(folder) / "weights.safetensors"
            alone(START, seed, options.updates, start, start)
            for arm in ARMS if seed % 2 == 0 else reversed(ARMS):
                runs[arm].append(run(arm, seed, options.updates, start))
        if options.out and seed:
            keep(runs, options.out)
    if options.json:
        print(json.dumps({arm: [asdict(one) for one in each] for arm, each in runs.items()}))
    else:
        print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
