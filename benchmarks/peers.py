"""One job of many prompts on shoal, OpenVINO GenAI and llama.cpp's server: the same weights.

    pip install -e '.[peers]'
    python benchmarks/peers.py [--rounds 3] [--degrees 1,2,4,8,16] [--check] [--out DIR] [--json]

The job: contexts of about 400 tokens, each with several questions, shuffled, 16 greedy tokens
out. Every arm runs in a process of its own that loads the model, warms up and is timed on the
job alone; the arms alternate within each round. Every arm reads the packaged GGUF file; shoal
computes in bf16, OpenVINO in the format it chooses for this processor, llama.cpp on the file's
own 4-bit blocks. ``--degrees`` also times jobs of 96 prompts that share in other groups; 1 has
nothing to share.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from shoal.core.stats import ratio_interval

PROMPTS = 96
CONTEXT = 400
NEW = 16
SLOTS = 8  # of llama.cpp's server
KV_GIB = 1
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

Answer = Callable[[list[str]], tuple[list[str], int | None]]


def shoal(dtype: str = "bf16", *, sharing: bool = True) -> Answer:
    """This library: the whole job is one group."""
    import asyncio

    from shoal.core.protocols import Request, Sampling, Segment
    from shoal.engine.local import LocalEngine

    engine = LocalEngine.open(dtype=dtype, sharing=sharing, kv_bytes=KV_GIB << 30)
    loop = asyncio.new_event_loop()

    def answer(prompts: list[str]) -> tuple[list[str], int]:
        before = engine.counters.tokens_computed - engine.counters.tokens_generated
        sampling = Sampling(max_tokens=NEW)
        requests = [Request((Segment(text),), sampling) for text in prompts]
        texts = [each.text for each in loop.run_until_complete(engine.generate(requests))]
        counters = engine.counters
        return texts, counters.tokens_computed - counters.tokens_generated - before

    return answer


def openvino(*, waves: bool = False) -> Answer:
    """OpenVINO GenAI's continuous batching with prefix caching, from the same file.

    ``waves`` is what an expert would do: one prompt of each group first, then the others, which
    find its context in the cache.
    """
    import openvino_genai as genai

    config = genai.SchedulerConfig()
    config.cache_size = KV_GIB
    config.enable_prefix_caching = True
    pipe = genai.ContinuousBatchingPipeline(str(weights()), config, "CPU")
    settings = genai.GenerationConfig(max_new_tokens=NEW, do_sample=False)

    def generate(prompts: list[str]) -> list[str]:
        results = pipe.generate(prompts, [settings] * len(prompts))
        return [result.m_generation_ids[0] for result in results]

    def answer(prompts: list[str]) -> tuple[list[str], None]:
        if not waves:
            return generate(prompts), None
        first: dict[str, int] = {}
        for index, prompt in enumerate(prompts):
            first.setdefault(prompt.split("\n\nQuestion:")[0], index)
        rest = [index for index in range(len(prompts)) if index not in first.values()]
        texts = [""] * len(prompts)
        for wave in (list(first.values()), rest):
            if wave:
                answers = generate([prompts[index] for index in wave])
                for index, text in zip(wave, answers, strict=True):
                    texts[index] = text
        return texts, None

    return answer


def llamacpp() -> Answer:
    """llama.cpp's server with one slot for each of eight clients, its cache on."""
    from concurrent.futures import ThreadPoolExecutor

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.n_ctx = 8192
    params.n_parallel = SLOTS
    params.kv_unified = True
    params.n_cache_reuse = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def ask(prompt: str) -> tuple[str, int]:
        body = {"prompt": prompt, "n_predict": NEW, "temperature": 0, "cache_prompt": True}
        reply = server.handle_completions(body)
        reply = json.loads(reply) if isinstance(reply, str) else reply
        reply = reply[0] if isinstance(reply, list) else reply
        if "content" in reply:
            return reply["content"], reply["timings"]["prompt_n"]
        return reply["choices"][0]["text"], reply["timings"]["prompt_n"]

    def answer(prompts: list[str]) -> tuple[list[str], int]:
        with ThreadPoolExecutor(SLOTS) as clients:
            replies = list(clients.map(ask, prompts))
        return [text for text, _ in replies], sum(count for _, count in replies)

    return answer


ARMS: dict[str, Callable[[], Answer]] = {
    "shoal": shoal,
    "OpenVINO GenAI, as shipped": openvino,
    "OpenVINO GenAI, in two waves": lambda: openvino(waves=True),
    "llama.cpp server": llamacpp,
}
REFERENCES: dict[str, Callable[[], Answer]] = {
    "shoal, fp32": lambda: shoal("fp32"),
    "shoal, fp32, nothing shared": lambda: shoal("fp32", sharing=False),
}


def weights() -> Path:
    """The packaged model's GGUF file."""
    from shoal.models.catalog import find

    return find("smollm2-135m").path


# -- one arm in a process of its own ------------------------------------------------------------


def work(arm: str, degree: int) -> Run:
    """Load an arm, warm it up, and time it on a job."""
    answer = (ARMS | REFERENCES)[arm]()
    answer(["Two short prompts wake every part.", "They share nothing with the job."])
    prompts = job(degree)
    wall, cpu = time.perf_counter(), time.process_time()
    texts, computed = answer(prompts)
    return Run(time.perf_counter() - wall, time.process_time() - cpu, computed, texts)


def run(arm: str, degree: int) -> Run:
    """The same in a process of its own."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as out:
        command = [sys.executable, __file__, "--work", arm, "--degree", str(degree)]
        done = subprocess.run(
            [*command, "--result", out.name], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{arm} failed:\n{done.stderr[-2000:]}")
        return Run(**json.load(out))


def measure(degree: int, rounds: int, arms: list[str]) -> dict[str, list[Run]]:
    """All arms on one job, alternating."""
    runs: dict[str, list[Run]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm in arms:
            runs[arm].append(run(arm, degree))
            print(f"  {degree:>3}  {arm:<30}{runs[arm][-1].wall:>8.2f} s", file=sys.stderr)
    return runs


def same_answers() -> tuple[int, int]:
    """How many answers of the shared fp32 run equal those of the unshared one."""
    shared, alone = (run(arm, 8).texts for arm in REFERENCES)
    return sum(a == b for a, b in zip(shared, alone, strict=True)), len(alone)


def table(degree: int, runs: dict[str, list[Run]]) -> Iterator[str]:
    """Lines of a Markdown table: median seconds, and how many times shoal's."""
    kind = "nothing shared" if degree == 1 else f"{PROMPTS // degree} contexts x {degree} questions"
    yield f"\n{kind}\n"
    yield "| arm | wall s | CPU s | prompt tokens computed | times shoal's time |"
    yield "|---|---|---|---|---|"
    ours = [each.wall for each in runs["shoal"]]
    for arm, each in runs.items():
        walls = [one.wall for one in each]
        computed = each[0].computed
        ratio = f"{statistics.median(walls) / statistics.median(ours):.2f}"
        if arm != "shoal" and len(walls) > 1:
            interval = ratio_interval(walls, ours)
            ratio = f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
        yield (
            f"| {arm} | {statistics.median(walls):.2f} "
            f"| {statistics.median(one.cpu for one in each):.1f} "
            f"| {'not told' if computed is None else f'{computed:,}'} | {ratio} |"
        )


def draw(results: dict[int, dict[str, list[Run]]], path: Path) -> None:
    """Time over sharing degree."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for arm in next(iter(results.values())):
        seconds = [statistics.median(one.wall for one in runs[arm]) for runs in results.values()]
        axes.plot(list(results), seconds, marker="o", label=arm)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(f"prompts that share a context ({PROMPTS} in all)")
    axes.set_ylabel("seconds for the job")
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--degrees", default="1,8", help="prompts that share a context")
    parser.add_argument("--arms", default="", help="only arms whose names hold one of these words")
    parser.add_argument("--check", action="store_true", help="compare fp32 answers, too")
    parser.add_argument("--out", type=Path, help="folder for a plot and a table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--degree", type=int, default=8, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        options.result.write_text(json.dumps(asdict(work(options.work, options.degree))))
        return
    words = options.arms.split(",")
    arms = [arm for arm in ARMS if arm == "shoal" or any(word in arm for word in words)]
    degrees = [int(degree) for degree in options.degrees.split(",")]
    results = {degree: measure(degree, options.rounds, arms) for degree in degrees}
    if options.json:
        print(
            json.dumps(
                {
                    d: {a: [asdict(r) for r in rs] for a, rs in each.items()}
                    for d, each in results.items()
                }
            )
        )
    lines = [line for degree, runs in results.items() for line in table(degree, runs)]
    if options.check:
        equal, of = same_answers()
        lines.append(f"\nfp32: {equal} of {of} answers equal those of a run that shares nothing.")
    if not options.json:
        print("\n".join(lines))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "peers.md").write_text("\n".join(lines).strip() + "\n")
        draw(results, options.out / "peers.png")


if __name__ == "__main__":
    main()
