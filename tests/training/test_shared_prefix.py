"""The shared forward against rows computed by themselves: numbers, gradients, leaks, trust."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from groups import row
from hypothesis import example, given, settings
from hypothesis import strategies as st
from worlds import Walk

from shoal.core.errors import InputError
from shoal.engine.batch.prefixes import find_prefixes
from shoal.models.decoder import Decoder, DecoderConfig, causal_attend
from shoal.models.rope import Rope
from shoal.training import shared_prefix
from shoal.training.config import parse_run
from shoal.training.forward import Logprobs, asked, distinct
from shoal.training.policies import Policy, adapted, random_weights, word_policy
from shoal.training.prefix_plan import FREE, Cost, forest
from shoal.training.setup import build
from shoal.training.shared_prefix import SharedPrefix, UnsupportedModel, require_supported
from shoal.training.tree_attention import masked, tree_attention

Rows = tuple[tuple[int, ...], ...]
SYSTEM, TASK, OTHER = tuple(range(2, 14)), (14, 15, 16, 17), (20, 3, 9)
PROMPTS: Rows = (
    *(SYSTEM + TASK,) * 3,
    SYSTEM + OTHER,
    SYSTEM + OTHER,
    SYSTEM + OTHER + (4, 4, 5),  # a later turn
    SYSTEM,
    (7, 8),
)
ACTIONS: Rows = ((5, 6, 7), (5, 9), (21,), (4, 4), (9, 8, 7, 6, 5), (3, 3), (22, 21), (6, 5, 4))


@pytest.fixture
def policy() -> Policy:
    made = word_policy(Walk().words(), hidden=16, layers=2, heads=2, context=64, seed=3)
    with torch.no_grad():  # far from uniform, so that a wrong position or mask shows
        for tensor in made.trained.values():
            tensor.mul_(3)
    return made


def always(policy: Policy, prompts: Any, actions: Any, **more: Any) -> Logprobs:
    return SharedPrefix("always", check=False)(policy, prompts, actions, **more)


def one_by_one(policy: Policy, prompts: Rows, actions: Rows) -> torch.Tensor:
    """The plainest forward there is: every row alone, every position through the head."""
    logps = []
    for prompt, action in zip(prompts, actions, strict=True):
        ids = torch.tensor(prompt + action)
        hidden = policy.decoder.forward(ids, torch.arange(len(ids)), causal_attend)
        logp = torch.log_softmax(policy.decoder.logits(hidden), -1)
        logps += [logp[len(prompt) + t - 1, token] for t, token in enumerate(action)]
    return torch.stack(logps)


def gradients(policy: Policy, logp_A: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a sum in which every token weighs something else."""
    for tensor in policy.trained.values():
        tensor.grad = None
    (logp_A * torch.cos(torch.arange(len(logp_A)))).sum().backward()
    return {k: t.grad.clone() for k, t in policy.trained.items() if t.grad is not None}


def agree(policy: Policy, ours_A: torch.Tensor, theirs_A: torch.Tensor) -> None:
    assert (ours_A - theirs_A).abs().max() < 1e-5
    ours, theirs = gradients(policy, ours_A), gradients(policy, theirs_A)
    assert ours.keys() == theirs.keys() and ours
    rounding = 1e-6 * max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():  # of equal tokens that of keys is 0, and rounding is left
        assert (ours[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + rounding, name


def test_log_probabilities_and_all_gradients_are_those_of_rows_alone(policy: Policy) -> None:
    found = always(policy, PROMPTS, ACTIONS)
    agree(policy, found.logp_A, one_by_one(policy, PROMPTS, ACTIONS))
    alone = {one + action[:-1] for one, action in zip(PROMPTS, ACTIONS, strict=True)}
    tree = {one[: n + 1] for one in alone for n in range(len(one))}
    saved = sum(map(len, alone)) - len(tree)
    assert found.told == {"shared_prefix.tokens_saved": saved}


@settings(max_examples=25)
@example(rows=[((2, 2), (2,)), ((2, 2), (2, 2))], heads=(4, 2))
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(2, 4), min_size=1, max_size=9).map(tuple),
            st.lists(st.integers(2, 4), max_size=4).map(tuple),
        ),
        min_size=2,
        max_size=8,
    ),
    heads=st.sampled_from([(4, 2), (2, 2)]),
)
def test_any_tree_agrees(rows: list[tuple[tuple[int, ...], ...]], heads: tuple[int, int]) -> None:
    policy = grouped_policy(*heads)
    prompts, actions = tuple(p for p, _ in rows), tuple(a for _, a in rows)
    if not any(actions):
        return
    plain_A = distinct(policy, prompts, actions).logp_A
    agree(policy, always(policy, prompts, actions).logp_A, plain_A)


def grouped_policy(heads: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> Policy:
    config = DecoderConfig(
        family="qwen3", layers=2, hidden=32, heads=heads, kv_heads=kv_heads, head_dim=8,
        intermediate=48, vocab=30, context=400, eps=1e-5, rope=Rope(theta=1e3), qkv_bias=True,
        qk_norm=True, eos_ids=(0,),
    )  # fmt: skip
    weights = {
        name: tensor.detach().to(torch.float32 if name.endswith("norm") else dtype).requires_grad_()
        for name, tensor in random_weights(config, seed=5, scale=0.3).items()
    }
    return Policy("grouped", Decoder(config, weights), word_policy(("a",)).tokenizer, weights)


@pytest.mark.parametrize("long", [40, 150])
def test_long_and_short_runs_go_through_different_calls_and_agree(long: int) -> None:
    policy = grouped_policy(4, 2)
    random = np.random.default_rng(0)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(random.integers(2, 30, n).tolist())

    system = draw(long)
    tasks = [system + draw(n) for n in (3, long, 5)]
    prompts = tuple(task for task in tasks for _ in range(3))
    actions = tuple(draw(n) for n in (2, 9, long, 30, 31, 32, 4, 4, 4))
    agree(
        policy, always(policy, prompts, actions).logp_A, distinct(policy, prompts, actions).logp_A
    )


def test_bf16_agrees_within_its_own_rounding() -> None:
    policy = grouped_policy(4, 2, torch.bfloat16)
    plain_A = distinct(policy, PROMPTS, ACTIONS).logp_A
    assert (always(policy, PROMPTS, ACTIONS).logp_A - plain_A).abs().max() < 0.1


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_the_mask_for_other_devices_is_the_same_attention(dtype: torch.dtype, apart: float) -> None:
    inputs = [one + action for one, action in zip(PROMPTS, ACTIONS, strict=True)]
    rows = forest(inputs, find_prefixes([np.array(one) for one in inputs]), FREE)
    random = torch.Generator().manual_seed(0)
    q = torch.randn(len(rows.ids_T), 4, 8, generator=random, dtype=dtype, requires_grad=True)
    kv = torch.randn(len(rows.ids_T), 2, 2, 8, generator=random, dtype=dtype, requires_grad=True)
    weigh = torch.randn(q.shape, generator=random, dtype=dtype)
    found = []
    for make in (tree_attention, masked):
        out = make(rows, torch.device("cpu"))(0, q, kv)
        found.append((out, *torch.autograd.grad((out * weigh).sum(), (q, kv))))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() < apart


# -- what goes wrong in other implementations -------------------------------------------------


def test_an_answer_does_not_see_another(policy: Policy) -> None:
    prompts = (SYSTEM,) * 2
    one = always(policy, prompts, ((5, 6, 7), (8, 9, 10))).logp_A
    other = always(policy, prompts, ((5, 6, 7), (11, 3, 2, 2))).logp_A
    assert (one[:3] - other[:3]).abs().max() < 1e-6
    assert (one[4:6] - other[4:6]).abs().max() > 1e-3


def test_positions_start_anew_for_every_answer(policy: Policy) -> None:
    seen: list[torch.Tensor] = []
    forward = policy.decoder.forward
    policy.decoder.forward = lambda ids, at, attend: (seen.append(at), forward(ids, at, attend))[1]  # type: ignore[method-assign]
    always(policy, ((5, 6, 7),) * 2, ((1, 2, 3), (4, 5, 6)))
    assert seen[0].tolist() == [0, 1, 2, 3, 4, 3, 4]


def test_the_first_token_is_predicted_by_the_last_of_the_prompt(policy: Policy) -> None:
    hidden = policy.decoder.forward(torch.tensor(SYSTEM), torch.arange(12), causal_attend)
    logp = torch.log_softmax(policy.decoder.logits(hidden), -1)
    found = always(policy, (SYSTEM,) * 2, ((5, 1), (9, 1))).logp_A
    assert found[[0, 2]].tolist() == pytest.approx(logp[-1, [5, 9]].tolist(), 1e-5)


def test_an_answers_first_token_sees_the_whole_prompt(policy: Policy) -> None:
    # a causal mask aligned to the upper left would show it the prompt's first tokens alone
    last = (*SYSTEM[:-1], 24)
    one = always(policy, (SYSTEM,) * 2, ((5, 6, 7), (8, 9))).logp_A
    other = always(policy, (last,) * 2, ((5, 6, 7), (8, 9))).logp_A
    assert (one - other).abs().min() > 1e-4


def test_the_prompts_gradient_is_not_lost(policy: Policy) -> None:
    # token 24 occurs in the prompt alone, and the head is tied: compare the embedding's gradient
    prompts, actions = ((24, 25, *SYSTEM),) * 3, ((5, 6), (7, 8), (9, 10))
    weights = policy.trained["embed"]
    with torch.no_grad():
        frozen = always(policy, prompts, actions).logp_A
    assert not frozen.requires_grad
    ours = gradients(policy, always(policy, prompts, actions).logp_A)["embed"]
    theirs = gradients(policy, one_by_one(policy, prompts, actions))["embed"]
    assert weights.requires_grad and theirs[24].norm() > 1e-2
    assert torch.allclose(ours[24], theirs[24], rtol=1e-4, atol=1e-6)
    head_alone = torch.zeros_like(theirs[24])
    assert not torch.allclose(ours[24], head_alone)


def test_equal_answers_are_computed_once_and_both_count(policy: Policy) -> None:
    prompts, actions = (SYSTEM,) * 3, ((5, 6), (5, 6), (7, 8))
    agree(policy, always(policy, prompts, actions).logp_A, one_by_one(policy, prompts, actions))
    assert asked(policy, prompts, actions).inputs == ((*SYSTEM, 5), (*SYSTEM, 7))


def test_an_empty_answer_keeps_its_row_and_does_no_harm(policy: Policy) -> None:
    found = always(policy, (SYSTEM,) * 3, ((), (5, 6), (7, 8)), entropy=True)
    assert found.logp_A.shape == (4,) and found.entropy_A is not None
    assert torch.isfinite(found.logp_A).all() and torch.isfinite(found.entropy_A).all()
    assert always(policy, (SYSTEM,), ((),)).logp_A.shape == (0,)


def test_temperature_and_entropy_are_those_of_the_plain_forward(policy: Policy) -> None:
    ours = always(policy, PROMPTS, ACTIONS, temperature=0.7, entropy=True)
    theirs = distinct(policy, PROMPTS, ACTIONS, temperature=0.7, entropy=True)
    assert (ours.logp_A - theirs.logp_A).abs().max() < 1e-5
    assert ours.entropy_A is not None and theirs.entropy_A is not None
    assert (ours.entropy_A - theirs.entropy_A).abs().max() < 1e-5


def test_a_group_of_one_takes_the_plain_path(policy: Policy) -> None:
    forward = SharedPrefix()
    assert forward(policy, (SYSTEM,), ((5, 6),)).told == {"shared_prefix.declined.one_input": 1.0}
    two = forward(policy, ((5, 6), (7, 8)), ((1,), (2,)))
    assert two.told == {"shared_prefix.declined.nothing_shared": 1.0}
    asked_not = SharedPrefix("never")(policy, PROMPTS, ACTIONS)
    assert asked_not.told == {"shared_prefix.declined.asked_not_to": 1.0}


def test_a_bad_row_is_named_as_on_the_plain_path(policy: Policy) -> None:
    with pytest.raises(InputError, match=r"Row 1 has 60 \+ 5 tokens, but the context .* holds 64"):
        always(policy, [(1,), (1,) * 60], [(1,), (1,) * 5])
    with pytest.raises(InputError, match="Row 0 has an empty prompt"):
        always(policy, [(), (1,)], [(1,), (1,)])


# -- trust ------------------------------------------------------------------------------------


def test_the_first_use_is_checked_and_later_ones_are_not(policy: Policy) -> None:
    forward = SharedPrefix("always")
    first, second = (forward(policy, PROMPTS, ACTIONS).told for _ in range(2))
    assert first["shared_prefix.self_check"] == 1.0 and "shared_prefix.self_check" not in second
    with torch.no_grad():  # another mode, another check
        assert forward(policy, PROMPTS, ACTIONS).told["shared_prefix.self_check"] == 1.0


def test_a_check_of_long_rows_looks_at_their_ends(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prefix, "CHECKED_TOKENS", 10)
    seen: list[int] = []
    forward = policy.decoder.forward
    policy.decoder.forward = lambda ids, at, attend: (  # type: ignore[method-assign]
        seen.append(len(ids)),
        forward(ids, at, attend),
    )[1]
    told = SharedPrefix("always")(policy, (SYSTEM + TASK,) * 3, ((5, 6), (7, 8), (9, 9))).told
    assert told["shared_prefix.self_check"] == 1.0
    # 18 tokens less 8: three rows of 9 alone, then 8 and three more, then the whole batch
    assert seen == [27, 11, 19]


def leaking(rows: Any, device: torch.device) -> Any:
    """Attention under which every row sees all before it."""
    return causal_attend


def deaf(rows: Any, device: torch.device) -> Any:
    """The right attention, whose gradient to keys and values is lost."""
    attend = tree_attention(rows, device)
    return lambda layer, q, kv: attend(layer, q, kv.detach())


@pytest.mark.parametrize(("broken", "why"), [(leaking, "nats"), (deaf, "gradient")])
def test_what_fails_its_check_is_not_used(
    broken: Callable[..., Any],
    why: str,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shared_prefix, "tree_attention", broken)
    forward = SharedPrefix("always")
    with caplog.at_level(logging.WARNING):
        found = forward(policy, PROMPTS, ACTIONS)
    assert found.told == {"shared_prefix.self_check": 0.0, "shared_prefix.declined.self_check": 1.0}
    assert why in caplog.text and "one by one" in caplog.text
    assert torch.equal(found.logp_A, distinct(policy, PROMPTS, ACTIONS).logp_A)
    caplog.clear()
    assert forward(policy, PROMPTS, ACTIONS).told == {"shared_prefix.declined.self_check": 1.0}
    assert not caplog.text


def test_a_model_with_attention_of_its_own_is_named_and_computed_plainly(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    class Windowed:
        """Delegates, and may look at a window alone."""

        def __init__(self, inner: Decoder) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    plain_A = distinct(policy, PROMPTS, ACTIONS).logp_A
    policy.decoder = Windowed(policy.decoder)  # type: ignore[assignment]
    with pytest.raises(UnsupportedModel, match=r"words computes its attention itself \(Windowed"):
        require_supported(policy)
    with caplog.at_level(logging.WARNING):
        found = SharedPrefix("always")(policy, PROMPTS, ACTIONS)
    assert found.told == {"shared_prefix.declined.unsupported_model": 1.0}
    assert "Windowed" in caplog.text and torch.equal(found.logp_A, plain_A)


def test_matrices_that_cannot_be_learned_through_are_named(policy: Policy) -> None:
    policy.decoder = Decoder(policy.config, policy.decoder.weights, kernels="blocked")
    with pytest.raises(UnsupportedModel, match="blocked matrices, which are not differentiable"):
        require_supported(policy)
    with torch.no_grad():
        require_supported(policy)


# -- in training --------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), [("lora", {"rank": 2}), ("mos", {"r": 2})])
def test_adapters_learn_alike(kind: str, options: dict[str, Any]) -> None:
    base = grouped_policy(4, 2)
    policy = adapted(base, kind, {**options, "seed": 1})
    with torch.no_grad():  # what begins at 0 would hide half of the gradients
        for tensor in policy.trained.values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    plain_A = distinct(policy, PROMPTS, ACTIONS).logp_A
    agree(policy, always(policy, PROMPTS, ACTIONS).logp_A, plain_A)


def learned(policy: Policy, micro: int | None, share: str) -> tuple[dict[str, Any], float]:
    """Gradients of two groups of four in a batch, and tokens saved."""
    run = {
        "environment": {"name": "arithmetic"},
        "optimiser": {"micro": micro},
        "forward": {"share": share, "check": False},
        "algorithm": {"name": "grpo"},
    }
    learner = build(parse_run(run), policy=policy, make=Walk).learner
    rows = [
        row(str(n % 2), str(n), 0, float(n > 4), prompt=(*SYSTEM, n % 2 + 2), action=(n + 3, 5),
            logprobs=(-3.0, -3.0))
        for n in range(8)
    ]  # fmt: skip
    credit = _credit(rows)
    old = [torch.tensor(one.logprobs) for one in rows]
    learner.optimiser.zero()
    told = learner._accumulate(rows, credit, old, np.arange(8))
    found = {k: t.grad.clone() for k, t in policy.trained.items() if t.grad is not None}
    return found, told.get("shared_prefix.tokens_saved", 0.0)


def _credit(rows: Sequence[Any]) -> Any:
    from shoal.training.advantage import grpo
    from shoal.training.rows import batch_of

    return grpo(batch_of(rows))


def test_cutting_a_batch_keeps_groups_and_does_not_change_the_gradient(policy: Policy) -> None:
    whole, saved = learned(policy, None, "always")
    cut, saved_by_group = learned(policy, 4, "always")
    single, nothing_saved = learned(policy, 1, "never")
    assert (saved, saved_by_group, nothing_saved) == (12 + 6 * 13, 6 * 13, 0)
    for name, gradient in single.items():
        for other in (whole[name], cut[name]):
            assert (other - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_a_run_shares_where_it_pays_and_says_so() -> None:
    run = {
        "environment": {"name": "arithmetic", "options": {"base": 5}},
        "groups": {"tasks": 2, "episodes": 4},
        "context": {"history": 0},
        "policy": {"hidden": 16, "layers": 1, "heads": 2},
        "iterations": 1,
    }
    import asyncio

    told = asyncio.run(build(parse_run(run)).iterate()).metrics
    assert any(name.startswith("shared_prefix.") for name in told)
    with_it = asyncio.run(build(parse_run({**run, "forward": {"share": "always"}})).iterate())
    assert with_it.metrics["shared_prefix.tokens_saved"] > 0
    without = asyncio.run(build(parse_run({**run, "forward": {"share": "never"}})).iterate())
    assert without.metrics["shared_prefix.declined.asked_not_to"] == 1.0
    assert with_it.metrics["loss"] == pytest.approx(without.metrics["loss"], abs=1e-5)


def test_the_package_prefix_grouper_computes_the_same(policy: Policy) -> None:
    try:  # by its version: a claim that other tests put on the path is called the same
        importlib.metadata.version("prefix_grouper")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the extra 'peers' is not installed")
    grouper = importlib.import_module("prefix_grouper")
    prompt, answers = SYSTEM + TASK, ((5, 6, 7), (8, 9), (10, 11, 12, 13))
    lengths = [len(answer) - 1 for answer in answers]
    sharing = grouper.PrefixGrouper([[len(prompt), *lengths]])

    def inner(q: Any, k: Any, v: Any, padding: Any) -> torch.Tensor:
        # its own mask is of padding alone: without a causal one it would look ahead in silence
        R, L = q.shape[2], k.shape[2]
        mask = padding.bool()[:, None, None] & torch.ones(R, L, dtype=torch.bool).tril(L - R)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)

    def attend(layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        parts = (x.transpose(0, 1)[None] for x in (q, *kv.unbind(1)))
        return sharing.forward(inner, *parts)[0]

    ids = torch.tensor([*prompt, *(token for answer in answers for token in answer[:-1])])
    positions = [*range(16), *(16 + t for n in lengths for t in range(n))]
    hidden = policy.decoder.forward(ids, torch.tensor(positions), attend)
    logp = torch.log_softmax(policy.decoder.logits(hidden), -1)
    starts = np.cumsum([16, *lengths])
    theirs = [
        logp[15 if t == 0 else int(start) + t - 1, token]
        for start, answer in zip(starts, answers, strict=False)
        for t, token in enumerate(answer)
    ]
    agree(policy, always(policy, (prompt,) * 3, answers).logp_A, torch.stack(theirs))


def test_costs_grow_with_the_model_and_with_a_backward_pass() -> None:
    small, large = grouped_policy(2, 2).config, grouped_policy(4, 2).config
    forward, both = Cost.of(small, backward=False), Cost.of(small, backward=True)
    assert forward.token < both.token and forward.span < both.span
    assert Cost.of(large, backward=True).token > both.token
