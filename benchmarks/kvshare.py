"""Text that moves between prompts keeps its cache: what that saves, and what it costs in answers.

    shoal reproduce kvshare [--smoke]

Which tokens are worth computing again (seven rules at equal budget, and how much is enough), with
the prompt and while the answer is written; a trace of moved documents of three tenants beside exact
prefix caching, in a hurry and without; orders of requests; whether one tenant can tell what another
has asked, or poison what all read.
"KVShare: An LLM Service System with Efficient and Effective Multi-Tenant KV Cache Reuse"
(arXiv 2503.16525).
"""

from __future__ import annotations

import asyncio

import torch

from moving.offsets import with_offsets
from moving.rules import FORCED, exactness, fidelity
from moving.tenants import isolation, poisoning
from moving.texts import SEGMENT, Corpus, cases_of
from moving.timed import Timed
from moving.trace import ANSWER, trace, unhurried
from moving.writing import second_stage
from shoal.core.claims import Bench
from shoal.engine.compute import compute
from shoal.models.loading import load


def run(bench: Bench) -> None:
    """Measure fidelity, a trace of moved documents, and isolation."""
    requests = bench.pick(full=40, smoke=2)
    answer = bench.pick(full=ANSWER, smoke=4)
    bench.workload = (
        f"SmolLM2-135M in bf16. Fidelity: {bench.pick(full=34, smoke=2)} prompts with one or two "
        f"texts of {SEGMENT[0]} to {SEGMENT[1]} tokens (documents and blocks of GSM8K questions), "
        "each computed behind a beginning of its own and moved behind another, then asked about; "
        f"KL to the dense model and equal choices over {FORCED} forced tokens of the dense answer; "
        "the curve over every third prompt. The default rule was chosen before, on other texts "
        "and beginnings. While writing: the same prompts and 16 forced tokens, with moved tokens "
        "computed again beside them, all arms in the same steps. With KVCOMM: one text a prompt, "
        f"four other texts as anchors. Trace: 3 tenants, {requests} requests in all, each with "
        "one to three of 12 documents (Zipf) behind a note of its own, one document in five with a "
        f"sentence put in, {answer} tokens out, Poisson arrivals at twice the rate at which exact "
        "prefix caching could answer one after the other. The trace runs on CPU seconds of one "
        "core, on which arrivals come too, and the arms take turns, always the one whose clock is "
        "behind, so other load does not matter. All arms are this engine. Nothing is declared "
        "public in the trace: tenants find their own alone."
    )
    model = compute.call(lambda: load(dtype="bf16"))
    corpus = Corpus(model, bench)
    asyncio.run(fidelity(bench, model, corpus))
    asyncio.run(exactness(bench))
    written = Timed(model, kv_bytes=1 << 30)
    cases = cases_of(bench, corpus)
    asyncio.run(second_stage(bench, written, cases[: bench.pick(full=34, smoke=2)]))
    single = [case for case in cases if len(case.texts) == 1]
    longest = sorted(corpus.texts[36:], key=len)[-bench.pick(full=5, smoke=2) :]
    fitting = [case for case in single if len(case.texts[0]) <= len(longest[0])]
    asyncio.run(with_offsets(bench, written, fitting[: bench.pick(full=8, smoke=1)], longest))
    asyncio.run(written.close())
    threads = compute.call(torch.get_num_threads)
    compute.call(lambda: torch.set_num_threads(1))
    try:
        trace(bench, model, corpus, requests, answer)
        if not bench.smoke:  # in the few prompts of a smoke run nothing is asked for twice
            unhurried(bench, model, corpus, 60)
        isolation(bench, model, corpus)
    finally:
        compute.call(lambda: torch.set_num_threads(threads))
    asyncio.run(poisoning(bench, model, corpus))
