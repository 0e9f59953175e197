"""Runs one of the four programs again and again and prints what that cost, as one line of JSON.

PYTHON benchmarks/comparison/timed.py PROGRAM URL MODEL RUNS

Uses the standard library alone, as each framework has an environment of its own. Run ``i`` asks
``URL/i/v1``, so that whoever listens there can tell runs apart.
"""

from __future__ import annotations

import importlib
import json
import sys
import time


def main(program: str, url: str, model: str, runs: int) -> None:
    """Import the program, run it, and print seconds and answers."""
    began = time.perf_counter()
    work = importlib.import_module(program).work
    imported = time.perf_counter() - began
    wall, cpu, answers = [], [], []
    for i in range(runs):
        clock, spent = time.perf_counter(), time.process_time()
        answers.append(work(f"{url}/{i}/v1", model))
        wall.append(time.perf_counter() - clock)
        cpu.append(time.process_time() - spent)
    found = {"import": imported, "wall": wall, "cpu": cpu, "answers": answers}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
