"""What an agent's tools are worth where there are tens of thousands, and whether the sandbox holds.

    shoal reproduce mcpcompany [--smoke]

A company on a local cloud with real state. The same tasks with the right tools shown (oracle), with
tools to be found (one search, three searches, once for the whole task, at random), and without
tools (pages of documentation and one generic HTTP request). A script that knows the goal and a
small model are reported apart. Then the gateway beside the official server, and code that tries to
leave the sandbox. "TheMCPCompany: Creating General-purpose Agents with Task-specific Tools"
(arXiv 2510.19286); the sandbox is that of DynaSaur (arXiv 2411.01747).
"""

from __future__ import annotations

import asyncio

from companybench import containing, models, scripts, starting
from shoal.core.claims import Bench


def run(bench: Bench) -> None:
    asyncio.run(scripts.solving(bench))
    starting.against_official(bench)
    containing.attacks(bench)
    if not bench.smoke:
        asyncio.run(models.solving(bench))
