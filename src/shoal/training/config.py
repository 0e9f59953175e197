"""The run file: everything a training run depends on, checked before anything is computed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shoal.core.errors import ConfigError, InputError, nearest
from shoal.training.correction import Mode
from shoal.training.estimators import Degenerate
from shoal.training.loss import KL, Aggregate, PolicyLoss
from shoal.training.shared_prefix import Share


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EnvironmentPart(_Part):
    """Which world; ``train`` and ``held_out`` are half-open ranges of seeds, which are tasks."""

    name: str
    options: dict[str, Any] = {}
    train: tuple[int, int] = (0, 64)
    held_out: tuple[int, int] = (1_000_000, 1_000_032)

    @model_validator(mode="after")
    def _apart(self) -> EnvironmentPart:
        for name, (first, last) in (("train", self.train), ("held_out", self.held_out)):
            if last <= first:
                raise ValueError(f"{name} seeds {first} to {last} are none: give a longer range")
        if max(self.train[0], self.held_out[0]) < min(self.train[1], self.held_out[1]):
            raise ValueError(
                f"train {list(self.train)} and held_out {list(self.held_out)} share seeds: "
                "what is trained on cannot be tested on"
            )
        return self


class GroupsPart(_Part):
    """K tasks × N episodes an iteration."""

    tasks: int = Field(default=8, ge=1)
    episodes: int = Field(default=8, ge=1)
    retries: int = Field(default=1, ge=0)
    keys: Literal["state", "observation"] = "state"
    similar: float | None = Field(default=None, gt=0, le=1)
    degenerate: Degenerate = "keep"
    resample_rounds: int = Field(default=3, ge=1)


class ContextPart(_Part):
    """What is shown at each step; see :class:`shoal.training.context.Context`."""

    history: int = Field(default=2, ge=0)
    observations: bool = False
    instructions: bool = False
    admissible: bool = False
    tags: bool = False


class PolicyPart(_Part):
    """``model`` "words" is a transformer from scratch; anything else is loaded by name.

    With an ``adapter`` ("lora" or "mos") the model's weights stay and the adapter learns;
    ``adapter_options`` are its kind's, such as rank, alpha and targets. ``weights`` names a file of
    what is trained, such as a checkpoint's ``weights.safetensors``, to begin with.
    """

    model: str = "words"
    weights: str | None = None
    adapter: str | None = None
    adapter_options: dict[str, Any] = {}
    hidden: int = Field(default=64, ge=8)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    context: int = Field(default=512, ge=8)
    device: str = "cpu"

    @model_validator(mode="after")
    def _kind(self) -> PolicyPart:
        if self.adapter_options and self.adapter is None:
            raise ValueError("adapter_options are given, but no adapter: name its kind")
        return self


class SamplerPart(_Part):
    """Who answers. Truncated draws are refused: what they hide cannot be corrected for."""

    kind: Literal["direct", "engine", "remote", "transformers"] = "direct"
    dtype: Literal["fp32", "bf16"] = "fp32"
    concurrent: bool = False
    max_tokens: int = Field(default=2, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = 1.0
    top_k: int = 0

    @model_validator(mode="after")
    def _whole(self) -> SamplerPart:
        if self.top_p != 1.0 or self.top_k:
            raise ValueError(
                f"top_p {self.top_p} and top_k {self.top_k} draw from a truncated distribution, "
                "whose log-probabilities are not the policy's: train with top_p 1 and top_k 0"
            )
        return self


class RewardPart(_Part):
    """``kind`` "environment" is what the world itself gives; "tool-call" is a reward of
    :mod:`shoal.training.rewards`, by name, with some of it changed.
    """

    kind: Literal["environment", "tool-call"] = "environment"
    variant: str = "original"
    weights: dict[str, float] = {}
    matcher: str = "greedy"
    equality: Literal["json", "schema"] = "schema"
    no_call: Literal["zero", "punish", "score"] = "zero"


class AlgorithmPart(_Part):
    """An estimator of advantages and its options."""

    name: str = "gigpo"
    options: dict[str, Any] = {}


class LossPart(_Part):
    """See :class:`shoal.training.loss.LossOptions`."""

    kind: PolicyLoss = "ppo_clip"
    clip_low: float = Field(default=0.2, gt=0)
    clip_high: float = Field(default=0.2, gt=0)
    dual_clip: float = Field(default=0.0, ge=0)
    aggregate: Aggregate = "token"
    length: int = Field(default=1, ge=1)
    kl: KL = "none"
    kl_weight: float = Field(default=0.0, ge=0)
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_weight: float = 0.0


class CorrectionPart(_Part):
    """See :class:`shoal.training.correction.Correction`; ``max_lag`` drops rows that are older."""

    mode: Mode = "sequence_mask"
    low: float = Field(default=0.0, ge=0)
    high: float = Field(default=3.0, gt=0)
    geometric: bool = False
    max_lag: int | None = Field(default=None, ge=0)


class OptimiserPart(_Part):
    """``epochs`` over each batch in mini-batches of rows; ``micro`` rows at a time in memory."""

    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_norm: float = Field(default=1.0, gt=0)
    warm_up: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    epochs: int = Field(default=1, ge=1)
    minibatch: int | None = Field(default=None, ge=1)
    micro: int | None = Field(default=None, ge=1)


class ForwardPart(_Part):
    """Whether beginnings that rows share are computed once; see ``shared_prefix``.

    "auto" shares where it pays; ``check`` holds the first use against the plain forward.
    """

    share: Share = "auto"
    check: bool = True


class WarmStartPart(_Part):
    """Imitation of the environment's own expert, who errs with probability ``noise``."""

    updates: int = Field(default=0, ge=0)
    noise: float = Field(default=0.3, ge=0, le=1)
    tasks: int = Field(default=16, ge=1)
    rows: int = Field(default=256, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    until: float | None = Field(default=None, gt=0, le=1)


class EvaluationPart(_Part):
    """Held-out success every so many iterations; 0 for never.

    greedy  whether the likeliest answer of each task is looked at, too
    """

    every: int = Field(default=0, ge=0)
    episodes: int = Field(default=1, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    greedy: bool = False


class RunConfig(_Part):
    """A run file. It ends after its iterations, or when ``env_steps`` have been taken."""

    seed: int = 0
    iterations: int = Field(default=20, ge=1)
    env_steps: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=10, ge=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=5, ge=0)
    environment: EnvironmentPart
    groups: GroupsPart = GroupsPart()
    context: ContextPart = ContextPart()
    policy: PolicyPart = PolicyPart()
    sampler: SamplerPart = SamplerPart()
    reward: RewardPart = RewardPart()
    algorithm: AlgorithmPart = AlgorithmPart()
    loss: LossPart = LossPart()
    correction: CorrectionPart = CorrectionPart()
    optimiser: OptimiserPart = OptimiserPart()
    forward: ForwardPart = ForwardPart()
    warm_start: WarmStartPart = WarmStartPart()
    evaluation: EvaluationPart = EvaluationPart()

    @model_validator(mode="after")
    def _enough(self) -> RunConfig:
        first, last = self.environment.train
        if last - first < self.groups.tasks:
            raise ValueError(
                f"groups.tasks is {self.groups.tasks}, but environment.train has only "
                f"{last - first} tasks: give a longer range"
            )
        if self.warm_start.updates and self.warm_start.tasks > last - first:
            raise ValueError(
                f"warm_start.tasks is {self.warm_start.tasks}, but environment.train has only "
                f"{last - first} tasks: ask for fewer, or give a longer range"
            )
        return self


def read_run_file(path: Path) -> RunConfig:
    """A run file from disk; raises :class:`InputError` or :class:`ConfigError`."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the run file {path}: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no valid TOML: {error}.") from error
    return parse_run(content, str(path))


def parse_run(content: dict[str, Any], where: str = "The run") -> RunConfig:
    """A run from a table; raises :class:`ConfigError` with the first thing that is wrong."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        if first["type"] == "extra_forbidden":
            *parents, name = (str(part) for part in first["loc"])
            known = _fields(parents)
            raise ConfigError(
                f"{where} sets {place}, which there is not.{nearest(name, known)}"
            ) from error
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {place} cannot be used: {said}.") from error


def _fields(parents: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for parent in parents:
        found = model.model_fields[parent].annotation
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            return []
        model = found
    return list(model.model_fields)
