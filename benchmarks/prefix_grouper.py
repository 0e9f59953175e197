"""A prompt that answers share is computed once, forward and backward, and nothing else changes.

    shoal reproduce prefix-grouper [--smoke]

The shared forward beside the plain one and the package prefix_grouper (extra ``peers``): gradients,
CPU time, memory, batches of several turns, and batches that are better left alone.
"Prefix Grouper: Efficient GRPO Training through Shared-Prefix Forward" (arXiv 2506.05433).
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence

import torch

from prefixes.arms import apart, gradients, noisy, smollm, step, steps, untrained
from prefixes.batches import Batch, Writer
from prefixes.memory import peak
from shoal.core.claims import Bench, alternate
from shoal.core.stats import Interval
from shoal.models.decoder import DecoderConfig
from shoal.training.forward import distinct
from shoal.training.policies import Policy, adapted, hub_policy, word_policy
from shoal.training.prefix_plan import Cost, subtrees
from shoal.training.shared_prefix import SharedPrefix, plan

EXACT = 1e-5
LAYERS = 6


def run(bench: Bench) -> None:
    """Exactness and time of one learning step, batch by batch."""
    torch.set_num_threads(1)
    layers = bench.pick(full=LAYERS, smoke=2)
    bench.workload = (
        f"One step of GRPO's loss on the first {layers} layers of SmolLM2-135M, fp32, one thread: "
        "all weights learn, the head (49,152 tokens) sees positions that predict an answer alone. "
        "Tokens are drawn at random, so no two answers are alike. Batches are named prompt + "
        "answers x length. Plain: every row by itself, padded to the longest; packed: without "
        "padding. All arms use torch's CPU attention; prefix_grouper is given the causal mask "
        "that its padding mask lacks; how far rounding alone reaches is shown by the plain forward "
        "under another of torch's kernels. Gradients are compared by element, over the largest of "
        "their tensor. Memory is the peak of a process of its own beyond weights "
        "and gradients."
    )
    policy = smollm(layers)
    write = Writer(bench.seed_of("tokens"))
    arms = ["plain", "shared", *(["prefix_grouper"] if _has_peer() else [])]
    headline(bench, policy, write, arms)
    declining(bench, policy, write)
    if bench.smoke:
        return
    tree(bench, policy, write)
    unequal(bench, policy, write)
    grid(bench, write)
    whole_model(bench, write)
    memory(bench, arms)


def _has_peer() -> bool:
    try:
        importlib.metadata.version("prefix_grouper")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def headline(bench: Bench, policy: Policy, write: Writer, arms: Sequence[str]) -> None:
    """The two shapes that the speed is promised for."""
    promised = bench.pick(full={768: 3.5, 256: 1.9}, smoke={256: 1.9})
    for prompt, least in promised.items():
        batch = write.group(prompt, 8, 32)
        other = ["plain, other kernel"] if prompt == 256 and not bench.smoke else []
        exact(bench, policy, batch, [*arms[1:], *other])
        shape = Batch(f"{batch.name}, random weights", batch.prompts, batch.actions)
        exact(bench, untrained(policy), shape, ["shared"])
        gains = timed(bench, policy, batch, list(arms), rounds=bench.pick(full=3, smoke=2))
        bench.verdict(f"{batch.name}: CPU time, plain over shared", gains["shared"], at_least=least)


def exact(bench: Bench, policy: Policy, batch: Batch, arms: Sequence[str]) -> None:
    """Loss, log-probabilities and every gradient beside the plain forward."""
    with torch.no_grad():
        plain_A = distinct(policy, batch.prompts, batch.actions).logp_A
        old_A = noisy(plain_A)
        shared_A = SharedPrefix("always", check=False)(policy, batch.prompts, batch.actions).logp_A
    plain_loss = step(policy, batch, "plain", old_A)
    plain = gradients(policy)
    for arm in arms:
        loss = abs(step(policy, batch, arm, old_A) - plain_loss)
        gradient = apart(gradients(policy), plain)
        told = {"loss_difference": loss, "gradient_difference": gradient}
        if arm == "shared":
            told["logp_difference_nats"] = float((plain_A - shared_A).abs().max())
            bench.verdict(f"{batch.name}: loss, shared - plain", loss, at_most=EXACT)
            bench.verdict(
                f"{batch.name}: gradients, shared - plain, over the largest", gradient,
                at_most=EXACT,
            )  # fmt: skip
        bench.arm(f"{batch.name}, {arm}: exactness", **told)


def timed(
    bench: Bench, policy: Policy, batch: Batch, arms: list[str], *, rounds: int, warmup: int = 0
) -> dict[str, Interval]:
    """CPU seconds of each arm; how many times those of the first arm they are fewer."""
    label = f"{batch.name} on {policy.name}"
    done = iter(bench.track(range((rounds + warmup) * len(arms)), label))

    def followed(job: Callable[[], object]) -> Callable[[], object]:
        def one() -> object:
            next(done, None)
            return job()

        return one

    jobs = {arm: followed(job) for arm, job in steps(policy, batch, arms).items()}
    found = alternate(jobs, rounds=rounds, warmup=warmup)
    next(done, None)
    gains = {}
    for arm in arms:
        told: dict[str, float | Interval] = {"cpu_seconds": found[arm].seconds("cpu")}
        if arm != arms[0]:
            gains[arm] = found[arm].times_faster_than(found[arms[0]], "cpu", seed=bench.seed)
            told[f"times_faster_than_{arms[0]}"] = gains[arm]
        if arm == "shared" and "prefix_grouper" in arms:
            told["times_faster_than_prefix_grouper"] = found[arm].times_faster_than(
                found["prefix_grouper"], "cpu", seed=bench.seed
            )
        bench.arm(f"{label}, {arm}", **told)
    tokens(bench, policy.config, batch)
    return gains


def tokens(bench: Bench, config: DecoderConfig, batch: Batch) -> None:
    """Tokens of a batch, and what the plan makes of them."""
    inputs = _inputs(batch)
    found = plan(inputs, Cost.of(config, backward=True), predicted=batch.predicted)
    bench.arm(
        f"{batch.name}: tokens",
        of_all_rows=batch.tokens,
        computed=found.tokens,
        ratio=batch.tokens / found.tokens,
        promised_gain=found.gain,
    )


def _inputs(batch: Batch) -> list[tuple[int, ...]]:
    rows = zip(batch.prompts, batch.actions, strict=True)
    return list(dict.fromkeys((*prompt, *action[:-1]) for prompt, action in rows))


def declining(bench: Bench, policy: Policy, write: Writer) -> None:
    """Where sharing saves little or nothing, planning must not cost what it saves."""
    policy = policy if bench.smoke else smollm(2)
    small = word_policy([f"w{n}" for n in range(60)], hidden=48, layers=2, heads=4, context=128)
    words = Writer(bench.seed_of("words"), 60)
    batches = [
        (policy, write.group(16, bench.pick(full=8, smoke=2), 256), bench.pick(full=4, smoke=2)),
        (small, words.groups(64, 40, 4, 3), bench.pick(full=20, smoke=10)),
        (small, words.groups(256, 24, 1, 3), bench.pick(full=20, smoke=10)),
    ]
    for model, batch, rounds in batches:
        found = plan(
            _inputs(batch), Cost.of(model.config, backward=True), predicted=batch.predicted
        )
        gains = timed(bench, model, batch, ["plain", "shared"], rounds=rounds, warmup=1)
        bench.arm(f"{batch.name}: declined", declined=float(bool(found.declined)))
        bench.verdict(
            f"{batch.name}: CPU time, plain over shared"
            + (", which declines" if found.declined else ""),
            gains["shared"],
            at_least=0.97,
        )


def tree(bench: Bench, policy: Policy, write: Writer) -> None:
    """Eight rollouts of four turns: a system prompt, two tasks, and turns that grow."""
    batch = write.turns(system=256, tasks=2, rollouts=8, turns=4)
    exact(bench, policy, batch, ["shared"])
    timed(bench, policy, batch, ["plain", "shared"], rounds=2)
    inputs = _inputs(batch)
    cost = Cost.of(policy.config, backward=True)
    order = bench.generator("order").permutation(len(inputs)).tolist()
    shuffled = [inputs[place] for place in order]
    for micro in (4, 8, 16):
        by_tree = [[shuffled[place] for place in part] for part in subtrees(shuffled, rows=micro)]
        as_came = [shuffled[at : at + micro] for at in range(0, len(shuffled), micro)]
        bench.arm(
            f"{batch.name}, {micro} rows at a time",
            tokens_by_subtree=sum(plan(part, cost).tokens for part in by_tree),
            tokens_as_shuffled=sum(plan(part, cost).tokens for part in as_came),
        )


def unequal(bench: Bench, policy: Policy, write: Writer) -> None:
    """Lengths as in practice, beside padded rows and beside rows without padding."""
    batch = write.unequal(4, 4)
    exact(bench, policy, batch, ["shared"])
    gains = timed(bench, policy, batch, ["packed", "plain", "shared"], rounds=2)
    bench.arm(f"{batch.name}: packed over shared", times=gains["shared"])


def seconds(job: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    began = time.process_time()
    job()
    return time.process_time() - began


def grid(bench: Bench, write: Writer) -> None:
    """Prompts, answers and their number on two layers, one round each."""
    policy = smollm(2)
    shapes = [
        (prompt, answers, answer)
        for answer in (32, 128)
        for answers in (4, 8)
        for prompt in (128, 512, 1024)
    ]
    found: dict[tuple[int, int], list[tuple[int, float, float]]] = {}
    for prompt, answers, answer in bench.track(shapes, "grid"):
        batch = write.group(prompt, answers, answer)
        plain, shared = (seconds(job) for job in steps(policy, batch, ["plain", "shared"]).values())
        gain = plain / shared
        ratio = batch.tokens / plan(_inputs(batch), Cost.of(policy.config, backward=True)).tokens
        found.setdefault((answers, answer), []).append((prompt, gain, ratio))
        bench.arm(f"grid, {batch.name}", times_faster=gain, fewer_tokens=ratio)
    with bench.plot(
        "grid",
        "CPU time of plain over shared, two layers; dashed: how many times fewer tokens",
        panels=2,
    ) as panels:
        for panel, answer in zip(panels, (32, 128), strict=True):
            for answers in (4, 8):
                prompts, gains, ratios = zip(*found[answers, answer], strict=True)
                (line,) = panel.plot(prompts, gains, "o-", label=f"{answers} answers")
                panel.plot(prompts, ratios, "--", color=line.get_color(), alpha=0.6)
            panel.axhline(1, color="black", lw=0.8)
            panel.set(xlabel="tokens of the prompt", title=f"{answer} tokens an answer",
                      ylabel="times", ylim=(0, None))  # fmt: skip
            panel.legend(fontsize=8)


def whole_model(bench: Bench, write: Writer) -> None:
    """All 30 layers with an adapter, once: the real path."""
    base = hub_policy("smollm2-135m", learns=False)
    policy = adapted(base, "lora", {"rank": 8, "seed": bench.seed})
    random = torch.Generator().manual_seed(bench.seed_of("adapter"))
    for tensor in policy.trained.values():  # B begins at 0, where A has no gradient
        torch.nn.init.normal_(tensor, std=0.02, generator=random)
    batch = write.group(256, 8, 16)
    exact_of = Batch(f"{batch.name}, LoRA", batch.prompts, batch.actions)
    exact(bench, policy, exact_of, ["shared"])
    timed(bench, policy, exact_of, ["plain", "shared"], rounds=2)


def memory(bench: Bench, arms: Sequence[str]) -> None:
    """Peak of a process for one step at 768 + 8 x 32."""
    found = {}
    for arm in bench.track(list(arms), "memory"):
        found[arm] = peak(arm, LAYERS, 768, 8, 32, bench.seed_of("memory"))
        bench.arm(f"768+8x32, {arm}: memory", peak_mib=found[arm])
    bench.arm("768+8x32: memory", plain_over_shared=found["plain"] / found["shared"])
