"""One task written in shoal, LangGraph, AutoGen and CrewAI: lines, concepts, tokens, time.

    python benchmarks/comparison/compare.py [--environments DIR] [--runs 10] [--upstream URL]

Each framework runs in a virtual environment of its own under DIR, made at the first run from the
versions named here. All ask one scripted endpoint, whose answers all take the same time, and
which counts what it is really asked with a real model's tokenizer and chat template. The first
run of each program is not timed. With ``--upstream`` (such as the address of ``shoal serve``) the
model there answers, so times are those of real work.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import tokenize
import venv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from endpoint import MODEL, NOTES, Prompt, cost, serving

HERE = Path(__file__).parent
FRAMEWORKS = {
    "shoal": (),
    "langgraph": ("langgraph==1.2.22", "langchain-openai==1.7.3"),
    "autogen": ("autogen-agentchat==0.7.5", "autogen-ext[openai]==0.7.5"),
    "crewai": ("crewai==1.15.30",),
}
SILENT = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
    "LANGSMITH_TRACING": "false",
}
"""Nothing here reports to anybody."""


@dataclass(frozen=True)
class Found:
    """What one program is and what one run of it takes; seconds are medians."""

    framework: str
    lines: int
    concepts: int
    requests: float
    prompt_tokens: float
    computed_tokens: float
    wall_ms: float
    cpu_ms: float
    import_s: float


def interpreter(name: str, environments: Path) -> str:
    """The Python that has this framework; its environment is made where it is missing."""
    if not FRAMEWORKS[name]:
        return sys.executable
    folder = environments / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *FRAMEWORKS[name]], check=True)
    return str(python)


def lines_of(path: Path) -> int:
    """Lines with code on them: no blank ones, comments or docstrings."""
    with path.open("rb") as file:
        tokens = [t for t in tokenize.tokenize(file.readline) if t.type not in _SILENT_TOKENS]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - described)


_SILENT_TOKENS = (
    tokenize.ENCODING,
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)


def concepts_of(path: Path) -> set[str]:
    """The framework's names in a program: imported ones, options, methods, attributes, rules.

    Rules are the names called within texts, such as ``judge`` in ``"judge(editor)"``. Names of
    the standard library and of the task do not count.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    foreign = {"self"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            top = (node.module or "").split(".")[0]
            names = {alias.name for alias in node.names}
            if top == "task" or top in sys.stdlib_module_names:
                foreign |= names
            else:
                imported |= names
        elif isinstance(node, ast.Import):
            foreign |= {alias.name for alias in node.names}
    used = set(imported)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            named = node.func.id if isinstance(node.func, ast.Name) else ""
            if named not in foreign:
                used |= {keyword.arg for keyword in node.keywords if keyword.arg}
        elif isinstance(node, ast.Attribute):
            inner = node.value
            base = inner.id if isinstance(inner, ast.Name) else ""
            if base not in foreign and not isinstance(inner, ast.Constant):
                used.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used |= set(re.findall(r"^(\w+)\(", node.value))
            used |= set(re.findall(r"\((\w+)=", node.value))
    return used - foreign


def measured(
    name: str, python: str, runs: int, encode: Callable[[Prompt], Sequence[int]], upstream: str
) -> Found:
    """One program, run in a process of its own."""
    asked: dict[str, list[Prompt]] = {}
    with (
        tempfile.TemporaryDirectory() as home,
        serving(asked, upstream=upstream, salt=f"{name}{os.getpid()}") as url,
    ):
        done = subprocess.run(
            [python, HERE / "timed.py", f"with_{name}", url, MODEL, str(runs + 1)],
            env=os.environ | SILENT | {"HOME": home, "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            timeout=300,
        )
    if done.returncode:
        raise SystemExit(f"with_{name}.py failed:\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert upstream or set(told["answers"]) == {NOTES["editor"]}, told["answers"]
    program = HERE / f"with_{name}.py"
    costs = [cost(prompts, encode) for prompts in asked.values()]
    return Found(
        name,
        lines_of(program),
        len(concepts_of(program)),
        statistics.mean(one.requests for one in costs),
        statistics.mean(one.prompt_tokens for one in costs),
        statistics.mean(one.computed_tokens for one in costs),
        1000 * statistics.median(told["wall"][1:]),
        1000 * statistics.median(told["cpu"][1:]),
        told["import"],
    )


def table(found: list[Found]) -> str:
    """The comparison as Markdown."""
    rows = [
        "| | lines | names to know | requests | prompt tokens | left by a prefix cache "
        "| wall ms | CPU ms | import s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {one.framework} | {one.lines} | {one.concepts} | {one.requests:g} "
        f"| {one.prompt_tokens:,.0f} | {one.computed_tokens:,.0f} | {one.wall_ms:.0f} "
        f"| {one.cpu_ms:.0f} | {one.import_s:.1f} |"
        for one in found
    ]
    return "\n".join(rows)


def main() -> None:
    """Run all four programs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environments", type=Path, default=Path("out/comparison"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--only", nargs="*", choices=list(FRAMEWORKS), default=list(FRAMEWORKS))
    parser.add_argument("--upstream", default="", help="OpenAI-compatible address to pass on to")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    chosen = parser.parse_args()
    from shoal.engine.local import LocalEngine

    codec = LocalEngine.open("smollm2-135m")
    folder = chosen.environments.resolve()
    found = [
        measured(name, interpreter(name, folder), chosen.runs, codec.encode, chosen.upstream)
        for name in chosen.only
    ]
    asyncio.run(codec.close())
    print(json.dumps([asdict(one) for one in found]) if chosen.json else table(found))


if __name__ == "__main__":
    main()
