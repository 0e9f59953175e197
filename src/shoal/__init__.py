"""Groups of LLM agents that share: prefixes, KV caches, weights, tools, memory, budget."""

__version__ = "0.1.0"
