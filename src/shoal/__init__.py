"""Groups of LLM agents that share: prefixes, KV caches, weights, tools, memory, budget."""

import os

__version__ = "0.1.0"

# Read by OpenMP when torch is first imported. Its default is to spin for milliseconds at every
# barrier; on a machine that does anything else besides, that made a step 5 to 10 times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
