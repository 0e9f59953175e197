"""How fast the engine is, beside transformers on the same weights and beside the machine itself.

    python benchmarks/engine.py [--rounds 5] [--threads 2] [--json]

Prefill of 512 tokens and decoding at batch 1, 8 and 32 (128 tokens of context, 32 new ones), in
bf16; at batch 1 also with packed matrices. The arms alternate within one process; wall and CPU
seconds are printed, the median round counts. The roofline is measured in the same run: the best
matrix product of the model's own shape bounds prefill, the time to read all weights once bounds a
decoding step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

from shoal.core.protocols import Request, Sampling, Segment
from shoal.engine.compute import compute
from shoal.engine.local import LocalEngine
from shoal.models.loading import Model, load

PREFILL = 512
CONTEXT = 128
NEW = 32
BATCHES = (1, 8, 32)
TARGETS = {"prefill": 850.0, "decode 1": 25.0, "decode 8": 200.0, "decode 32": 420.0}
PACKED = 45.0  # tokens per second at batch 1


@dataclass
class Figure:
    """One arm of one job: tokens per second of the median round, and its seconds."""

    job: str
    arm: str
    tokens_per_second: float
    wall: float
    cpu: float


def timed(job: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - cpu


def prompts(model: Model, count: int, length: int, salt: int) -> list[tuple[int, ...]]:
    """Random prompts that share nothing."""
    draw = torch.Generator().manual_seed(salt)
    shape = (count, length)
    ids = torch.randint(1000, model.config.vocab, shape, generator=draw).tolist()
    return [tuple(row) for row in ids]


def ours(
    engine: LocalEngine, loop: asyncio.AbstractEventLoop, rows: list[tuple[int, ...]], new: int
) -> None:
    """Answer all rows as one group, ``new`` tokens each."""
    sampling = Sampling(max_tokens=new, ignore_eos=True)
    group = [Request((Segment(tokens=row),), sampling) for row in rows]
    loop.run_until_complete(engine.generate(group))


def transformers_model(model: Model) -> torch.nn.Module:
    """The same weights in the library everybody compares with."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = model.config
    hf = LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
    )
    peer = AutoModelForCausalLM.from_config(hf, dtype=model.dtype).eval()
    peer.load_state_dict(dict(unfused(model)), strict=False)  # the tied head is the embedding
    return peer


def unfused(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    """Our weights under the names and in the pieces that transformers wants."""
    config, weights = model.config, model.decoder.weights
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    yield "model.embed_tokens.weight", weights["embed"]
    yield "model.norm.weight", weights["final_norm"]
    for index in range(config.layers):
        ours, name = f"layers.{index}", f"model.layers.{index}"
        projections = weights[f"{ours}.qkv"].split([q, kv, kv])
        for part, tensor in zip("qkv", projections, strict=True):
            yield f"{name}.self_attn.{part}_proj.weight", tensor
        yield f"{name}.self_attn.o_proj.weight", weights[f"{ours}.out"]
        gate, up = weights[f"{ours}.gate_up"].chunk(2)
        yield f"{name}.mlp.gate_proj.weight", gate
        yield f"{name}.mlp.up_proj.weight", up
        yield f"{name}.mlp.down_proj.weight", weights[f"{ours}.down"]
        yield f"{name}.input_layernorm.weight", weights[f"{ours}.attn_norm"]
        yield f"{name}.post_attention_layernorm.weight", weights[f"{ours}.mlp_norm"]


def theirs(model: torch.nn.Module, rows: list[tuple[int, ...]], new: int) -> None:
    """The same in transformers, on the same thread: two OpenMP teams would slow each other."""
    compute.call(lambda: _generate(model, rows, new))


@torch.inference_mode()
def _generate(model: torch.nn.Module, rows: list[tuple[int, ...]], new: int) -> None:
    ids = torch.tensor(rows)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )


def roofline(model: Model) -> dict[str, float]:
    """Tokens per second no engine can pass here, measured with the model's own shapes."""
    config = model.config
    weights = sum(p.numel() for p in model.decoder.weights.values())
    x = torch.randn(PREFILL, config.hidden, dtype=model.dtype)
    w = torch.randn(2 * config.intermediate, config.hidden, dtype=model.dtype)
    best = min(timed(lambda: torch.nn.functional.linear(x, w))[0] for _ in range(30))
    flops = 2 * PREFILL * w.numel() / best
    blocks = weights - config.vocab * config.hidden
    source = torch.empty(weights, dtype=model.dtype).normal_()
    read = min(timed(lambda: source.sum())[0] for _ in range(5))
    limits = {"prefill": flops / (2 * blocks)}
    return limits | {f"decode {batch}": batch / read for batch in BATCHES}


def measure(rounds: int) -> tuple[list[Figure], dict[str, float]]:
    """All jobs, arms alternating within every round."""
    model = compute.call(lambda: load(dtype="bf16"))
    engine = LocalEngine(model)
    packed = LocalEngine(compute.call(lambda: load(dtype="packed")))
    loop = asyncio.new_event_loop()
    peer = compute.call(lambda: transformers_model(model))
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def run(job: str, arm: str, work: Callable[[], None]) -> None:
        seconds.setdefault((job, arm), []).append(timed(work))

    for index in range(rounds + 1):
        if index == 1:
            seconds.clear()  # the first round warms up
        rows = prompts(model, 1, PREFILL, 10_000 + index)
        run("prefill", "shoal", lambda rows=rows: ours(engine, loop, rows, 1))
        run("prefill", "transformers", lambda rows=rows: theirs(peer, rows, 1))
        for batch in BATCHES:
            rows = prompts(model, batch, CONTEXT, 100 * index + batch)
            job = f"decode {batch}"
            ours(engine, loop, rows, 1)  # the prompts are in the cache; decoding alone is timed
            run(job, "shoal", lambda rows=rows: ours(engine, loop, rows, NEW))
            if batch == 1:
                ours(packed, loop, rows, 1)
                run(job, "shoal, packed", lambda rows=rows: ours(packed, loop, rows, NEW))
            run(job, "transformers", lambda rows=rows: theirs(peer, rows, NEW))
            run(f"{job} prompt", "transformers", lambda rows=rows: theirs(peer, rows, 1))
    for each in (engine, packed):
        loop.run_until_complete(each.close())
    return _figures(seconds), compute.call(lambda: roofline(model))


def _figures(seconds: dict[tuple[str, str], list[tuple[float, float]]]) -> list[Figure]:
    def median(job: str, arm: str) -> tuple[float, float]:
        runs = seconds[job, arm]
        return statistics.median(w for w, _ in runs), statistics.median(c for _, c in runs)

    figures = []
    for job in TARGETS:
        batch = int(job.split()[1]) if "decode" in job else 0
        for arm in ("shoal", "shoal, packed", "transformers"):
            if (job, arm) not in seconds:
                continue
            wall, cpu = median(job, arm)
            tokens = batch * NEW if batch else PREFILL
            if batch and arm == "transformers":  # its prompt is not cached: take it off
                prompt_wall, prompt_cpu = median(f"{job} prompt", arm)
                wall, cpu = wall - prompt_wall, cpu - prompt_cpu
                tokens -= batch
            figures.append(Figure(job, arm, tokens / wall, wall, cpu))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    compute.call(lambda: torch.set_num_threads(options.threads))
    figures, limits = measure(options.rounds)
    if options.json:
        print(json.dumps({"figures": [asdict(f) for f in figures], "roofline": limits}, indent=2))
        return
    print(f"{'job':<12}{'arm':<14}{'tok/s':>9}{'wall s':>9}{'cpu s':>9}{'target':>9}{'roof':>9}")
    for f in figures:
        targets = {"shoal": TARGETS[f.job], "shoal, packed": PACKED}
        target = f"{targets[f.arm]:.0f}" if f.arm in targets else ""
        roof = f"{limits[f.job]:.0f}" if f.arm == "shoal" else ""
        print(
            f"{f.job:<12}{f.arm:<14}{f.tokens_per_second:>9.0f}{f.wall:>9.3f}{f.cpu:>9.3f}"
            f"{target:>9}{roof:>9}"
        )


if __name__ == "__main__":
    main()
