"""One job of many prompts on shoal, OpenVINO GenAI and llama.cpp's server: the same weights.

    pip install -e '.[peers]'
    python benchmarks/peers.py [--rounds 3] [--degrees 1,2,4,8,16] [--kv-tokens 2048,4096,8192]
        [--decode] [--check] [--out DIR] [--json]

The job: contexts of about 400 tokens, each with several questions, shuffled, 16 greedy tokens
out. Every arm runs in a process of its own that loads the model, warms up and is timed on the
job alone; the arms alternate within each round. Every arm reads the packaged GGUF file; shoal
computes in bf16, OpenVINO in the format it chooses for this processor, llama.cpp on the file's
own 4-bit blocks. ``--degrees`` also times jobs of 96 prompts that share in other groups; 1 has
nothing to share. ``--kv-tokens`` times the job of eight questions a context again where the cache
holds so many tokens; ``--decode`` one answer of 128 tokens alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from shoal.core.stats import ratio_interval

PROMPTS = 96
CONTEXT = 400
NEW = 16
SLOTS = 8  # of llama.cpp's server
KV_TOKENS = 1 << 15  # in every arm's cache
OV_BLOCK = 32  # tokens of a block of OpenVINO's cache on a CPU
DECODED = 128
DOCUMENTS = Path(__file__).parent.parent / "examples" / "documents" / "jargon"
QUESTIONS = (
    "What is this text about?",
    "Which group of people does it describe?",
    "Name one word that the text explains.",
    "What does the author think of it?",
    "Give one example from the text.",
    "When did this happen?",
    "Who would disagree with the author?",
    "Sum it up in one sentence.",
    "Which place is named?",
    "What is said about machines?",
    "What should a beginner remember?",
    "Which joke does the text make?",
    "What is the most surprising claim?",
    "Is the tone friendly?",
    "What would you ask the author?",
    "Which habit is described?",
)


@dataclass(frozen=True)
class Run:
    """One timed job: wall and CPU seconds, prompt tokens computed (None: not told), answers."""

    wall: float
    cpu: float
    computed: int | None
    texts: list[str]

    @property
    def answered(self) -> int:
        """Prompts that got an answer: OpenVINO gives up those that find no room in its cache."""
        return sum(bool(text) for text in self.texts)


def job(degree: int) -> list[str]:
    """Prompts in groups of ``degree`` that share a context, shuffled."""
    words = " ".join(path.read_text() for path in sorted(DOCUMENTS.glob("*.md"))).split()
    length = len(words) // PROMPTS  # about 217 words; real text, so no two contexts are alike
    length = max(length, int(CONTEXT * 0.62))
    groups = PROMPTS // degree
    stride = (len(words) - length) // groups
    contexts = [" ".join(words[g * stride : g * stride + length]) for g in range(groups)]
    prompts = [
        f"{context}\n\nQuestion: {QUESTIONS[q % len(QUESTIONS)]}\nAnswer:"
        for context in contexts
        for q in range(degree)
    ]
    random.Random(degree).shuffle(prompts)
    return prompts


# -- the arms: each loads, warms up and returns a function that answers a job -----------------

Answer = Callable[[list[str], int], tuple[list[str], int | None]]
"""Answers prompts with so many tokens; texts, and prompt tokens computed."""


def shoal(kv_tokens: int, dtype: str = "bf16", *, sharing: bool = True) -> Answer:
    """This library: the whole job is one group, planned as ``shoal batch`` does."""
    import asyncio

    from shoal.core.protocols import Request, Sampling, Segment
    from shoal.engine.batch.planned import Planned
    from shoal.engine.compute import compute
    from shoal.engine.local import LocalEngine
    from shoal.models.loading import load

    def opened() -> LocalEngine:
        torch.set_num_threads(os.cpu_count() or 1)
        model = load(dtype=dtype)
        config = model.config
        token_bytes = 2 * config.layers * config.kv_heads * config.head_dim * model.dtype.itemsize
        return LocalEngine(model, sharing=sharing, kv_bytes=kv_tokens * token_bytes)

    engine = compute.call(opened)
    if sharing:
        engine.scheduler.waiting = Planned()
    loop = asyncio.new_event_loop()

    def answer(prompts: list[str], new: int) -> tuple[list[str], int]:
        before = engine.counters.tokens_computed - engine.counters.tokens_generated
        sampling = Sampling(max_tokens=new, ignore_eos=True)
        requests = [Request((Segment(text),), sampling) for text in prompts]
        texts = [each.text for each in loop.run_until_complete(engine.generate(requests))]
        counters = engine.counters
        return texts, counters.tokens_computed - counters.tokens_generated - before

    return answer


def openvino(kv_tokens: int, *, waves: bool = False) -> Answer:
    """OpenVINO GenAI's continuous batching with prefix caching, from the same file.

    ``waves`` is what an expert would do: one prompt of each group first, then the others, which
    find its context in the cache.
    """
    import openvino_genai as genai

    config = genai.SchedulerConfig()
    config.num_kv_blocks = kv_tokens // OV_BLOCK
    config.enable_prefix_caching = True
    pipe = genai.ContinuousBatchingPipeline(str(weights()), config, "CPU")

    def generate(prompts: list[str], new: int) -> list[str]:
        settings = genai.GenerationConfig(max_new_tokens=new, do_sample=False, ignore_eos=True)
        settings.apply_chat_template = False  # or every prompt has thirty tokens more
        results = pipe.generate(prompts, [settings] * len(prompts))
        return [result.m_generation_ids[0] for result in results]

    def answer(prompts: list[str], new: int) -> tuple[list[str], None]:
        if not waves:
            return generate(prompts, new), None
        first: dict[str, int] = {}
        for index, prompt in enumerate(prompts):
            first.setdefault(prompt.split("\n\nQuestion:")[0], index)
        rest = [index for index in range(len(prompts)) if index not in first.values()]
        texts = [""] * len(prompts)
        for wave in (list(first.values()), rest):
            if wave:
                answers = generate([prompts[index] for index in wave], new)
                for index, text in zip(wave, answers, strict=True):
                    texts[index] = text
        return texts, None

    return answer


def llamacpp(kv_tokens: int) -> Answer:
    """llama.cpp's server with one slot for each of eight clients, its cache on."""
    from concurrent.futures import ThreadPoolExecutor

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.n_ctx = kv_tokens
    params.n_parallel = SLOTS
    params.kv_unified = True
    params.n_cache_reuse = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def ask(prompt: str, new: int) -> tuple[str, int]:
        body = {"prompt": prompt, "n_predict": new, "temperature": 0, "cache_prompt": True}
        body["ignore_eos"] = True
        reply = server.handle_completions(body)
        reply = json.loads(reply) if isinstance(reply, str) else reply
        reply = reply[0] if isinstance(reply, list) else reply
        if "content" in reply:
            return reply["content"], reply["timings"]["prompt_n"]
        return reply["choices"][0]["text"], reply["timings"]["prompt_n"]

    def answer(prompts: list[str], new: int) -> tuple[list[str], int]:
        with ThreadPoolExecutor(SLOTS) as clients:
            replies = list(clients.map(lambda prompt: ask(prompt, new), prompts))
        return [text for text, _ in replies], sum(count for _, count in replies)

    return answer


ARMS: dict[str, Callable[[int], Answer]] = {
    "shoal": shoal,
    "shoal, packed": lambda kv_tokens: shoal(kv_tokens, "packed"),
    "OpenVINO GenAI, as shipped": openvino,
    "OpenVINO GenAI, in two waves": lambda kv_tokens: openvino(kv_tokens, waves=True),
    "llama.cpp server": llamacpp,
}
REFERENCES: dict[str, Callable[[int], Answer]] = {
    "shoal, fp32": lambda kv_tokens: shoal(kv_tokens, "fp32"),
    "shoal, fp32, nothing shared": lambda kv_tokens: shoal(kv_tokens, "fp32", sharing=False),
}
ALONE = ("shoal", "shoal, packed", "OpenVINO GenAI, as shipped", "llama.cpp server")


def weights() -> Path:
    """The packaged model's GGUF file."""
    from shoal.models.catalog import find

    return find("smollm2-135m").path


# -- one arm in a process of its own ------------------------------------------------------------


def work(arm: str, degree: int, kv_tokens: int) -> Run:
    """Load an arm, warm it up, and time it on a job, or with degree 0 on one answer alone."""
    answer = (ARMS | REFERENCES)[arm](kv_tokens)
    answer(["Two short prompts wake every part.", "They share nothing with the job."], NEW)
    if not degree:
        prompt = job(8)[:1]
        answer(prompt, 1)  # its prefill is not what is timed
        return _timed(answer, prompt, DECODED)
    return _timed(answer, job(degree), NEW)


def _timed(answer: Answer, prompts: list[str], new: int) -> Run:
    wall, cpu = time.perf_counter(), time.process_time()
    texts, computed = answer(prompts, new)
    return Run(time.perf_counter() - wall, time.process_time() - cpu, computed, texts)


def run(arm: str, degree: int, kv_tokens: int = KV_TOKENS) -> Run:
    """The same in a process of its own."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as out:
        command = [sys.executable, __file__, "--work", arm, "--degree", str(degree)]
        command += ["--kv-tokens", str(kv_tokens), "--result", out.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{arm} failed:\n{done.stderr[-2000:]}")
        return Run(**json.load(out))


def measure(
    degree: int, rounds: int, arms: Sequence[str], kv_tokens: int = KV_TOKENS
) -> dict[str, list[Run]]:
    """All arms on one job, alternating."""
    runs: dict[str, list[Run]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm in arms:
            runs[arm].append(run(arm, degree, kv_tokens))
            wall = runs[arm][-1].wall
            print(f"  {degree:>3} {kv_tokens:>6}  {arm:<30}{wall:>8.2f} s", file=sys.stderr)
    return runs


def same_answers(runs: dict[str, list[Run]]) -> Iterator[str]:
    """How many answers equal those of fp32 that shares nothing, which is the plainest run."""
    shared, alone = (run(arm, 8).texts for arm in REFERENCES)
    found = {"shoal, fp32": shared} | {arm: each[0].texts for arm, each in runs.items()}
    yield "\nAnswers equal to those of fp32 that shares nothing, letter by letter:"
    for arm, texts in found.items():
        equal = sum(a.strip() == b.strip() for a, b in zip(texts, alone, strict=True))
        yield f"- {arm}: {equal} of {len(alone)}"


def named(degree: int) -> str:
    """What a job is called."""
    if not degree:
        return f"one answer of {DECODED} tokens alone"
    return "nothing shared" if degree == 1 else f"{PROMPTS // degree} contexts x {degree} questions"


def table(kind: str, runs: dict[str, list[Run]]) -> Iterator[str]:
    """Lines of a Markdown table: median seconds, and how many times those of shoal's arms."""
    ours = [arm for arm in runs if arm.startswith("shoal")]
    times = "".join(f"| times {arm} " for arm in ours)
    yield f"\n{kind}\n"
    yield f"| arm | wall s | CPU s | prompt tokens computed | answered {times}|"
    yield "|---|---|---|---|---" + "|---" * len(ours) + "|"
    for arm, each in runs.items():
        walls = [one.wall for one in each]
        computed = each[0].computed
        ratios = " | ".join(_ratio(walls, [one.wall for one in runs[own]]) for own in ours)
        yield (
            f"| {arm} | {statistics.median(walls):.2f} "
            f"| {statistics.median(one.cpu for one in each):.1f} "
            f"| {'not told' if computed is None else f'{computed:,}'} "
            f"| {min(one.answered for one in each)} | {ratios} |"
        )


def _ratio(walls: list[float], ours: list[float]) -> str:
    if len(walls) == 1 or walls == ours:
        return f"{statistics.median(walls) / statistics.median(ours):.2f}"
    interval = ratio_interval(walls, ours)
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def draw(results: dict[int, dict[str, list[Run]]], path: Path, what: str) -> None:
    """Time over sharing degree, or over what the cache holds, of arms that answered everything."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for arm in next(iter(results.values())):
        seconds = [
            statistics.median(one.wall for one in runs[arm])
            if all(one.answered == PROMPTS for one in runs[arm])
            else math.nan
            for runs in results.values()
        ]
        axes.plot(list(results), seconds, marker="o", label=arm)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(what)
    axes.set_ylabel("seconds for the job")
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--degrees", default="1,8", help="prompts that share a context")
    parser.add_argument("--arms", default="", help="only arms whose names hold one of these words")
    parser.add_argument("--kv-tokens", default="", help="what the cache holds, for 8 questions")
    parser.add_argument("--decode", action="store_true", help="one answer alone, too")
    parser.add_argument("--check", action="store_true", help="compare fp32 answers, too")
    parser.add_argument("--out", type=Path, help="folder for plots and a table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--degree", type=int, default=8, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        found = work(options.work, options.degree, int(options.kv_tokens))
        options.result.write_text(json.dumps(asdict(found)))
        return
    words = options.arms.split(",")
    arms = [arm for arm in ARMS if arm.startswith("shoal") or any(word in arm for word in words)]
    degrees = [int(degree) for degree in options.degrees.split(",") if degree]
    budgets = [int(tokens) for tokens in options.kv_tokens.split(",") if tokens]
    by_degree = {degree: measure(degree, options.rounds, arms) for degree in degrees}
    by_budget = {tokens: measure(8, options.rounds, arms, tokens) for tokens in budgets}
    jobs = {named(degree): runs for degree, runs in by_degree.items()}
    jobs |= {f"{named(8)}, cache of {tokens:,} tokens": by_budget[tokens] for tokens in budgets}
    if options.decode:
        jobs[named(0)] = measure(0, options.rounds, ALONE)
    if options.json:
        plain = {
            name: {arm: [asdict(each) for each in runs] for arm, runs in arms_runs.items()}
            for name, arms_runs in jobs.items()
        }
        print(json.dumps(plain))
    lines = [line for name, runs in jobs.items() for line in table(name, runs)]
    if options.check:
        lines += same_answers(by_degree.get(8, {}))
    if not options.json:
        print("\n".join(lines))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        with (options.out / "peers.md").open("a") as file:
            file.write("\n".join(lines).strip() + "\n\n")
        if len(by_degree) > 1:
            what = f"prompts that share a context ({PROMPTS} in all)"
            draw(by_degree, options.out / "degrees.png", what)
        if len(by_budget) > 1:
            draw(by_budget, options.out / "budgets.png", "tokens that the cache holds")


if __name__ == "__main__":
    main()
