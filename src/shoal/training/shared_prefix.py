"""Shared-prefix forward: what rows of a batch begin with alike is computed once, with gradient.

"Prefix Grouper: Efficient GRPO Training through Shared-Prefix Forward" (arXiv 2506.05433): one row
``[prompt; answer 1; …; answer G]`` instead of G rows, with positions that start anew behind the
prompt, the state of its last token read by every answer, and attention in two parts. Departs from
it in that beginnings are found from token ids, at any depth; that it shares only where a cost model
says it pays; and that it holds itself against the plain forward when it is first used with a
model, and falls back to it. The plan is :mod:`shoal.training.prefix_plan`, the attention
:mod:`shoal.training.tree_attention`.

A policy's log-probabilities, those before an update and those of a reference come from the same
call, and so would a reward model's scores of several questions about one text, or a pair of
answers to one prompt.

Shapes: A tokens of all actions side by side, T rows of a forward pass, D hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from shoal.core.errors import ShoalError
from shoal.engine.batch.prefixes import Prefixes, find_prefixes
from shoal.models.decoder import Decoder
from shoal.training.forward import (
    CHUNK,
    Asked,
    Logprobs,
    Tokens,
    asked,
    chunks,
    distinct,
    head,
    nothing,
    separate,
)
from shoal.training.policies import Policy
from shoal.training.prefix_plan import FREE, Cost, Forest, common, filled, forest
from shoal.training.rows import Ints
from shoal.training.tree_attention import tree_attention

Share = Literal["auto", "always", "never"]
GAIN = 1.1
"""How many times faster sharing must promise to be."""
CHECKED, CHECKED_TOKENS = 3, 512
"""Rows of the check on first use, and tokens of each: of longer ones the beginning is cut off."""
ROUNDING = 1e-5
"""Of the largest gradient of all; what is smaller is not told from zero."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of log-probabilities in nats, and of gradients relative to their largest element."""

_log = logging.getLogger(__name__)


class UnsupportedModel(ShoalError):
    """A model whose attention cannot be told which rows see which."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compute.

    parts     inputs, and the forest that holds them, one forward pass each; none where declined
    declined  why nothing is shared; "" where something is
    tokens    computed; ``alone``: of all inputs computed by themselves, without padding
    gain      how many times faster than separate rows it promises to be
    """

    parts: tuple[tuple[Ints, Forest], ...]
    declined: str
    tokens: int
    alone: int
    gain: float


def plan(
    inputs: Sequence[Tokens], cost: Cost, *, share: Share = "auto", predicted: int = 0
) -> Plan:
    """Whether and how to share among distinct, non-empty inputs; so many positions predict.

    What these cost does not change, so it makes the gain smaller.
    """
    tree = find_prefixes(inputs)
    alone = tree.logical_tokens

    def declined(why: str, gain: float) -> Plan:
        return Plan((), why, alone, alone, gain)

    if tree.tokens == alone:
        return declined("nothing_shared", 1.0)
    same = cost.predict * predicted * 1e-6
    separate = same + _separate_seconds(tree.length_P.tolist(), cost)
    if share == "auto":
        best = same + _least_seconds(tree, cost)
        if separate < GAIN * best:
            return declined("too_little_shared", separate / best)
    parts = _parts(inputs, tree, cost if share == "auto" else FREE)
    shared = same + sum(found.seconds(cost) for _, found in parts)
    gain = separate / shared
    tokens = sum(len(found.ids_T) for _, found in parts)
    if tokens == alone or (share == "auto" and gain < GAIN):
        return declined("would_not_pay", gain)
    return Plan(tuple(parts), "", tokens, alone, gain)


def _parts(inputs: Sequence[Tokens], tree: Prefixes, cost: Cost) -> list[tuple[Ints, Forest]]:
    """One forest, or several where one would be too many tokens at once."""
    whole = forest(inputs, tree, cost)
    if len(whole.ids_T) <= CHUNK:
        return [(np.arange(len(inputs)), whole)]
    parts = []
    for places in filled(tree, tokens=CHUNK):
        own = [inputs[place] for place in places]
        parts.append((places, forest(own, find_prefixes(own), cost)))
    return parts


def _separate_seconds(lengths: list[int], cost: Cost) -> float:
    """What separate, padded rows would take."""
    seconds = 0.0
    for chunk in chunks(lengths):
        rows, longest = len(chunk), lengths[chunk[-1]]
        each = cost.token * longest + cost.pair * longest * longest / 2
        seconds += (rows * each + cost.span) * 1e-6
    return seconds


def _least_seconds(tree: Prefixes, cost: Cost) -> float:
    """What no forest can do without: each token once, looking at all before it."""
    end_N, start_N = tree.end_N, tree.end_N[tree.parent_N]
    pairs = float((end_N * end_N - start_N * start_N).sum()) / 2
    return (cost.token * tree.tokens + cost.pair * pairs) * 1e-6


class SharedPrefix:
    """A :class:`~shoal.training.forward.Forward` that shares where it pays.

    share  "auto", "always" or "never"
    check  whether the first use with a model is held against the plain forward

    Metrics of a call: ``shared_prefix.tokens_saved``, ``shared_prefix.declined.<reason>`` (calls)
    and ``shared_prefix.self_check`` (1 where it passed, in the call that made it; a failed one
    declines from then on).
    """

    def __init__(self, share: Share = "auto", *, check: bool = True) -> None:
        self._share: Share = share
        self._check = check
        self._trusted: dict[tuple[str, bool], str] = {}

    def __call__(
        self,
        policy: Policy,
        prompts: Sequence[Tokens],
        actions: Sequence[Tokens],
        *,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> Logprobs:
        """See :class:`shoal.training.forward.Forward`.

        Raises :class:`InputError`, naming the row, as ``distinct`` does.
        """
        what = asked(policy, prompts, actions)
        if not what.inputs:
            return nothing(policy, entropy=entropy)
        told: dict[str, float] = {}
        found = self._planned(policy, what)
        if not found.declined:
            found = self._trusting(policy, prompts, actions, what, found, told)
        if found.declined:
            told[f"shared_prefix.declined.{found.declined}"] = 1.0
            plain = separate(policy, what, temperature=temperature, entropy=entropy)
            return replace(plain, told=told)
        told["shared_prefix.tokens_saved"] = float(found.alone - found.tokens)
        shared = run(policy, what, found, temperature=temperature, entropy=entropy)
        return replace(shared, told=told)

    def _planned(self, policy: Policy, what: Asked) -> Plan:
        if self._share == "never" or len(what.inputs) == 1:
            why = "asked_not_to" if self._share == "never" else "one_input"
            tokens = sum(map(len, what.inputs))
            return Plan((), why, tokens, tokens, 1.0)
        cost = Cost.of(policy.config, backward=torch.is_grad_enabled())
        predicted = len(np.unique(what.input_A * policy.config.context + what.position_A))
        return plan(what.inputs, cost, share=self._share, predicted=predicted)

    def _trusting(
        self,
        policy: Policy,
        prompts: Sequence[Tokens],
        actions: Sequence[Tokens],
        what: Asked,
        found: Plan,
        told: dict[str, float],
    ) -> Plan:
        """The plan, or a refusal where the model cannot be used so or failed its check."""
        key = policy.name, torch.is_grad_enabled()
        why = self._trusted.get(key)
        if why is None:
            try:
                require_supported(policy)
                why = ""
            except UnsupportedModel as error:
                _log.warning("%s Rows are computed one by one instead.", error)
                why = "unsupported_model"
            if not why and self._check:
                off = self_check(policy, prompts, actions, what)
                told["shared_prefix.self_check"] = float(not off)
                if off:
                    _log.warning("%s Rows are computed one by one instead.", off)
                    why = "self_check"
            self._trusted[key] = why
        return replace(found, parts=(), declined=why) if why else found


def require_supported(policy: Policy) -> None:
    """Raises :class:`UnsupportedModel`, naming the reason, where rows cannot be shared exactly."""
    decoder = policy.decoder
    if not isinstance(decoder, Decoder):
        raise UnsupportedModel(
            f"{policy.name} computes its attention itself ({type(decoder).__name__}), so that it "
            "cannot be told which rows see which."
        )
    if torch.is_grad_enabled() and decoder.kernels != "plain":
        raise UnsupportedModel(
            f"{policy.name} has {decoder.kernels} matrices, which are not differentiable."
        )


def run(
    policy: Policy, what: Asked, found: Plan, *, temperature: float = 1.0, entropy: bool = False
) -> Logprobs:
    """Compute a plan that declined nothing."""
    states, row_A, done = [], np.empty(len(what.input_A), dtype=np.int64), 0
    for places, rows in found.parts:
        states.append(forest_states(policy, rows))
        own_I = np.full(len(what.inputs), -1, dtype=np.int64)
        own_I[places] = np.arange(len(places))
        here = own_I[what.input_A] >= 0
        row_A[here] = done + rows.rows(own_I[what.input_A[here]], what.position_A[here])
        done += len(rows.ids_T)
    states_TD = states[0] if len(states) == 1 else torch.cat(states)
    return head(policy, states_TD, row_A, what.target_A, temperature=temperature, entropy=entropy)


def forest_states(policy: Policy, rows: Forest) -> torch.Tensor:
    """Final states of a forest's rows, [T, D]."""
    device = policy.device
    return policy.decoder.forward(
        torch.from_numpy(rows.ids_T).to(device),
        torch.from_numpy(rows.positions_T).to(device),
        tree_attention(rows, device),
    )


def self_check(
    policy: Policy, prompts: Sequence[Tokens], actions: Sequence[Tokens], what: Asked
) -> str:
    """Hold some rows that share much, and their gradient, against the plain forward.

    What differs, in a sentence; "" where nothing does.
    """
    rows = _rows_of(prompts, actions, _sharers(what), what)
    their = [actions[row] for row in rows]
    some = _shortened([prompts[row] for row in rows], their)
    part = asked(policy, some, their)
    plain_A = distinct(policy, some, their).logp_A
    shared_A = run(policy, part, plan(part.inputs, FREE, share="always")).logp_A
    tolerance = TOLERANCE.get(policy.decoder.dtype, 0.1)
    apart = float((plain_A - shared_A).detach().abs().max())
    if not apart <= tolerance:
        return (
            f"The shared forward of {policy.name} differs from the plain one by {apart:.2g} nats, "
            f"more than {tolerance:g}."
        )
    moved = {name: tensor for name, tensor in policy.trained.items() if tensor.requires_grad}
    if not (plain_A.requires_grad and moved):
        return ""
    weigh_A = torch.cos(torch.arange(len(plain_A), device=plain_A.device))
    plain, shared = (
        torch.autograd.grad((weigh_A * logp_A).sum(), list(moved.values()), materialize_grads=True)
        for logp_A in (plain_A, shared_A)
    )
    largest = max(float(gradient.abs().max()) for gradient in plain)
    for name, one, other in zip(moved, plain, shared, strict=True):
        scale = max(float(one.abs().max()), ROUNDING * largest)
        apart = float((one - other).abs().max()) / scale if scale else 0.0
        if not apart <= tolerance:
            return (
                f"The gradient of {name} in the shared forward of {policy.name} is off by "
                f"{apart:.2g} of its largest element, more than {tolerance:g}."
            )
    return ""


def _sharers(what: Asked) -> Ints:
    """Some inputs, neighbours in the tree, around the pair that shares most."""
    tree = find_prefixes(what.inputs)
    most = int(common(tree).argmax())
    first = max(0, min(most - 1, len(tree.order_P) - CHECKED))
    return tree.order_P[first : first + CHECKED]


def _shortened(prompts: Sequence[Tokens], actions: Sequence[Tokens]) -> list[Tokens]:
    """The prompts less so much of what all begin with that the longest row is short enough."""
    shared = 0
    for tokens in zip(*prompts, strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    longest = max(len(p) + len(a) for p, a in zip(prompts, actions, strict=True))
    cut = max(0, min(shared - CHECKED_TOKENS // 2, longest - CHECKED_TOKENS))
    return [prompt[cut:] for prompt in prompts]


def _rows_of(
    prompts: Sequence[Tokens], actions: Sequence[Tokens], chosen: Ints, what: Asked
) -> list[int]:
    """One row for each of these inputs."""
    wanted = {what.inputs[index] for index in chosen.tolist()}
    rows = []
    for row, (prompt, action) in enumerate(zip(prompts, actions, strict=True)):
        if action and (key := (*prompt, *action[:-1])) in wanted:
            wanted.remove(key)
            rows.append(row)
    return rows
