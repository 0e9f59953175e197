"""PPO for decisions that are made once: independent actor-critics, learnt side by side.

Proximal policy optimisation (arXiv 1707.06347) on a contextual bandit, as "Everyone Contributes!"
(arXiv 2508.02076) trains its policies: a learner sees a state, draws outputs in (0, 1), and is told
one reward. The advantage is reward minus value: with a single step no discount and no lambda enter.

Departures: policies start wide and may move by a KL of 0.05 a batch. With a spread of 1 and the
published 0.015 most groups of the scalar game are caught where some ride free.

An output is the sigmoid of one Gaussian draw, squashed once, so it reaches its whole range. Losses,
norms and the stop by KL are each learner's own: a learner among others learns what it would alone.

Legend: L learners, B decisions of each, F features, O outputs, H hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from shoal.core.errors import ConfigError, InputError
from shoal.core.rng import seed_of


@dataclass(frozen=True, slots=True)
class BanditOptions:
    """How learners learn.

    hidden       units of the two hidden layers, of policy and value alike
    spread       standard deviation of the draws at first, before the sigmoid
    epochs       passes over a batch of decisions, each in ``minibatches`` parts
    target_kl    a learner leaves a batch alone once its policy moved by 1.5 times this
    decay        of the learning rate, after each batch
    entropy      weight of the entropy of the Gaussian; it decays as the learning rate does
    """

    hidden: tuple[int, int] = (32, 32)
    spread: float = 1.5
    lr: float = 5e-3
    decay: float = 0.99
    epochs: int = 4
    minibatches: int = 4
    clip: float = 0.2
    value: float = 0.5
    entropy: float = 0.02
    max_norm: float = 0.5
    target_kl: float = 0.05

    def __post_init__(self) -> None:
        for name in ("spread", "lr", "decay", "epochs", "minibatches", "clip", "max_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"The {name} is {getattr(self, name)}, but must be above 0.")
        if not all(units > 0 for units in self.hidden):
            raise ConfigError(f"Hidden layers of {self.hidden} units make no network.")


_BETAS = (0.9, 0.999)


class Draw(NamedTuple):
    """Decisions [L, B, O]: before the sigmoid, after it, and log-densities [L, B] of the former."""

    raw: torch.Tensor
    outputs: torch.Tensor
    logp: torch.Tensor


class Bandits:
    """``learners`` independent policies and values over ``features``, each with ``outputs``."""

    def __init__(
        self,
        learners: int,
        features: int,
        outputs: int,
        options: BanditOptions = BanditOptions(),
        *,
        seed: int = 0,
    ) -> None:
        self.learners, self.features, self.outputs = learners, features, outputs
        self.options = options
        self.seed, self.updates = seed, 0
        random = torch.Generator().manual_seed(seed_of(seed, "bandits"))
        sizes = (features, *options.hidden)
        self.weights: dict[str, torch.Tensor] = {}
        for part, ends in (("policy", outputs), ("value", 1)):
            for layer, (inner, outer) in enumerate(zip(sizes, (*sizes[1:], ends), strict=True)):
                last = layer == len(sizes) - 1
                scale = (0.01 if last else 1.0) * inner**-0.5
                weight = torch.randn((learners, inner, outer), generator=random) * scale
                self.weights[f"{part}.{layer}.weight"] = weight
                self.weights[f"{part}.{layer}.bias"] = torch.zeros(learners, 1, outer)
        log_spread = torch.full((learners, 1, outputs), options.spread).log()
        self.weights["policy.log_spread"] = log_spread
        for tensor in self.weights.values():
            tensor.requires_grad_()
        self._steps_L = torch.zeros(learners)
        self._mean = {name: torch.zeros_like(one) for name, one in self.weights.items()}
        self._square = {name: torch.zeros_like(one) for name, one in self.weights.items()}

    def act(self, state_LBF: torch.Tensor, *, noise_LBO: torch.Tensor | None = None) -> Draw:
        """Decide; ``noise`` is standard normal, and without it the middle of each policy is taken.

        Raises :class:`InputError` for states of other sizes.
        """
        if state_LBF.shape[0] != self.learners or state_LBF.shape[-1] != self.features:
            raise InputError(
                f"{self.learners} learners see {self.features} features each, "
                f"not states of shape {tuple(state_LBF.shape)}."
            )
        with torch.no_grad():
            middle_LBO, log_spread_L1O = self._policy(state_LBF)
            noise = torch.zeros_like(middle_LBO) if noise_LBO is None else noise_LBO
            raw_LBO = middle_LBO + log_spread_L1O.exp() * noise
            return Draw(
                raw_LBO,
                torch.sigmoid(raw_LBO),
                _log_density(raw_LBO, middle_LBO, log_spread_L1O),
            )

    def values(self, state_LBF: torch.Tensor) -> torch.Tensor:
        """What each learner expects to be rewarded, [L, B]."""
        with torch.no_grad():
            return self._value(state_LBF)

    def learn(
        self, state_LBF: torch.Tensor, draw: Draw, reward_LB: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Move all policies by one batch of decisions; metrics [L].

        A decision whose reward is not finite is left out, for all learners alike.
        """
        known_B = torch.isfinite(reward_LB).all(dim=0)
        if not bool(known_B.any()):
            raise InputError("No decision of the batch has a finite reward to learn from.")
        kept = Draw(*(part[:, known_B] for part in draw))
        with _one_thread():
            return self._learn(state_LBF[:, known_B], kept, reward_LB[:, known_B])

    def _learn(
        self, state: torch.Tensor, draw: Draw, reward: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        raw, before_LB = draw.raw, draw.logp
        advantage_LB = reward - self.values(state)
        centred = advantage_LB - advantage_LB.mean(dim=1, keepdim=True)
        advantage_LB = centred / (centred.std(dim=1, keepdim=True, correction=0) + 1e-6)
        options, B = self.options, state.shape[1]
        faded = options.decay**self.updates
        random = torch.Generator().manual_seed(seed_of(self.seed, "batches", self.updates))
        going_L = torch.ones(self.learners, dtype=torch.bool)
        kl_L = torch.zeros(self.learners)
        for _ in range(options.epochs):
            order_B = torch.randperm(B, generator=random)
            for part in order_B.chunk(min(options.minibatches, B)):
                middle, log_spread = self._policy(state[:, part])
                log_ratio = _log_density(raw[:, part], middle, log_spread) - before_LB[:, part]
                ratio, advantage = log_ratio.exp(), advantage_LB[:, part]
                bounded = ratio.clamp(1 - options.clip, 1 + options.clip)
                gain_L = torch.minimum(ratio * advantage, bounded * advantage).mean(dim=1)
                error_L = (self._value(state[:, part]) - reward[:, part]).square().mean(dim=1)
                entropy_L = log_spread.sum(dim=(1, 2))
                with torch.no_grad():
                    kl_L = ((ratio - 1) - log_ratio).mean(dim=1)
                    going_L &= kl_L <= 1.5 * options.target_kl
                loss_L = options.value * error_L - gain_L - options.entropy * faded * entropy_L
                self._step(loss_L.sum(), going_L, options.lr * faded)
        self.updates += 1
        return {"reward": reward.mean(dim=1), "kl": kl_L, "spread": self._spread()}

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and all the next step depends on, but for :attr:`updates`."""
        return {name: tensor.detach().clone() for name, tensor in self._held().items()}

    def restore(self, state: Mapping[str, torch.Tensor], updates: int) -> None:
        """Go on where :meth:`state` was taken; raises :class:`InputError` for other sizes."""
        held = self._held()
        for name, tensor in held.items():
            if name not in state or state[name].shape != tensor.shape:
                raise InputError(f"The state has no {name} of shape {tuple(tensor.shape)}.")
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(state[name])
        self.updates = updates

    def _held(self) -> dict[str, torch.Tensor]:
        means = {f"mean/{name}": tensor for name, tensor in self._mean.items()}
        squares = {f"square/{name}": tensor for name, tensor in self._square.items()}
        return {**self.weights, **means, **squares, "steps": self._steps_L}

    def _step(self, loss: torch.Tensor, going_L: torch.Tensor, lr: float) -> None:
        """Adam (arXiv 1412.6980), each learner by its own norm and count, and only those going."""
        if not bool(going_L.any()):
            return
        named = list(self.weights.items())
        gradients = torch.autograd.grad(loss, [tensor for _, tensor in named])
        norm_L = (
            torch.stack([one.square().flatten(1).sum(dim=1) for one in gradients]).sum(0).sqrt()
        )
        shrink_L = (self.options.max_norm / (norm_L + 1e-9)).clamp(max=1)
        self._steps_L += going_L
        fade_L = [1 - beta ** self._steps_L.clamp(min=1) for beta in _BETAS]
        with torch.no_grad():
            for (name, tensor), gradient in zip(named, gradients, strict=True):
                own = gradient * shrink_L[:, None, None]
                moved = going_L[:, None, None]
                for held, value, beta in (
                    (self._mean[name], own, _BETAS[0]),
                    (self._square[name], own.square(), _BETAS[1]),
                ):
                    held.copy_(torch.where(moved, beta * held + (1 - beta) * value, held))
                mean = self._mean[name] / fade_L[0][:, None, None]
                square = self._square[name] / fade_L[1][:, None, None]
                tensor -= torch.where(moved, lr * mean / (square.sqrt() + 1e-5), 0.0)

    def _spread(self) -> torch.Tensor:
        return self.weights["policy.log_spread"].detach().exp().mean(dim=(1, 2))

    def _policy(self, state_LBF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._network("policy", state_LBF), self.weights["policy.log_spread"]

    def _value(self, state_LBF: torch.Tensor) -> torch.Tensor:
        return self._network("value", state_LBF)[..., 0]

    def _network(self, part: str, x: torch.Tensor) -> torch.Tensor:
        layers = len(self.options.hidden) + 1
        for layer in range(layers):
            weight = self.weights[f"{part}.{layer}.weight"]
            x = torch.baddbmm(self.weights[f"{part}.{layer}.bias"], x, weight)
            x = torch.tanh(x) if layer < layers - 1 else x
        return x


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, on a busy machine many times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _log_density(
    raw_LBO: torch.Tensor, middle_LBO: torch.Tensor, log_spread_L1O: torch.Tensor
) -> torch.Tensor:
    """Of the Gaussian before the sigmoid, up to a constant, [L, B]."""
    z = (raw_LBO - middle_LBO) * (-log_spread_L1O).exp()
    return (-0.5 * z.square() - log_spread_L1O).sum(dim=-1)
