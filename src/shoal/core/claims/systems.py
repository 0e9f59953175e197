"""The 36 published systems shoal is built from: their papers, rooms and state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.core.errors import ConfigError, nearest

State = Literal["planned", "partial", "works"]


@dataclass(frozen=True, slots=True)
class System:
    """One published system.

    ``planned`` has no code yet; ``partial`` has some, and a claim for what there is; ``works``
    holds its whole claim.
    """

    name: str
    title: str
    paper: str
    arxiv: str
    room: str
    state: State = "planned"

    @property
    def module(self) -> str:
        """Name of its claim's file, without the ending."""
        return self.name.replace("-", "_")

    @property
    def citation(self) -> str:
        """The paper in one line."""
        return f"{self.paper} (arXiv {self.arxiv})"


SYSTEMS: tuple[System, ...] = (
    System(
        "gigpo",
        "GiGPO",
        "Group-in-Group Policy Optimization for LLM Agent Training",
        "2505.10978",
        "training",
        "partial",
    ),
    System(
        "foldgpt",
        "FoldGPT",
        "FoldGPT: Simple and Effective Large Language Model Compression Scheme",
        "2407.00928",
        "models",
        "partial",
    ),
    System(
        "knapsack-composer",
        "Knapsack composer",
        "Automated Composition of Agents: A Knapsack Approach for Agentic Component Selection",
        "2510.16499",
        "agents",
    ),
    System(
        "spm",
        "SPM one-dimensional adapter",
        "One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing "
        "Applications",
        "2312.16145",
        "diffusion",
    ),
    System(
        "genmac",
        "GenMAC",
        "GenMAC: Compositional Text-to-Video Generation with Multi-Agent Collaboration",
        "2412.04440",
        "diffusion",
    ),
    System(
        "collaboration-mechanisms",
        "Collaboration mechanisms",
        "Multi-Agent Collaboration Mechanisms: A Survey of LLMs",
        "2501.06322",
        "agents",
        "works",
    ),
    System(
        "prefix-grouper",
        "Prefix Grouper",
        "Prefix Grouper: Efficient GRPO Training through Shared-Prefix Forward",
        "2506.05433",
        "training",
        "partial",
    ),
    System(
        "mcpcompany",
        "TheMCPCompany",
        "TheMCPCompany: Creating General-purpose Agents with Task-specific Tools",
        "2510.19286",
        "tools, envs",
        "works",
    ),
    System(
        "group-diffusion",
        "Group Diffusion Transformers",
        "Group Diffusion Transformers are Unsupervised Multitask Learners",
        "2410.15027",
        "diffusion",
    ),
    System(
        "pccl",
        "PCCL",
        "Prime Collective Communications Library: Technical Report",
        "2505.14065",
        "collectives",
        "partial",
    ),
    System(
        "copo",
        "COPO",
        "COPO: Consistency-Aware Policy Optimization",
        "2508.04138",
        "training",
        "partial",
    ),
    System(
        "gra",
        "GRA",
        "A Strategic Coordination Framework of Small LLMs Matches Large LLMs in Data Synthesis",
        "2504.12322",
        "synthesis",
    ),
    System(
        "streamlined-inference",
        "Streamlined Inference",
        "Fast and Memory-Efficient Video Diffusion Using Streamlined Inference",
        "2411.01171",
        "diffusion",
    ),
    System(
        "hiring-agents",
        "Hiring multiple agents",
        "Online Information Acquisition: Hiring Multiple Agents",
        "2307.06210",
        "mechanisms",
        "partial",
    ),
    System(
        "toolshed",
        "Toolshed",
        "Toolshed: Scale Tool-Equipped Agents with Advanced RAG-Tool Fusion and Tool Knowledge "
        "Bases",
        "2410.14594",
        "tools",
        "works",
    ),
    System(
        "oasis",
        "OASIS",
        "OASIS: Open Agent Social Interaction Simulations with One Million Agents",
        "2411.11581",
        "envs",
    ),
    System(
        "kvcomm",
        "KVCOMM",
        "KVCOMM: Online Cross-context KV-cache Communication for Efficient LLM-based Multi-agent "
        "Systems",
        "2510.12872",
        "engine",
        "partial",
    ),
    System(
        "batchllm",
        "BatchLLM",
        "BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and "
        "Throughput-oriented Token Batching",
        "2412.03594",
        "engine",
        "partial",
    ),
    System(
        "think-on-graph-3",
        "Think-on-Graph 3.0",
        "Think-on-Graph 3.0: Efficient and Adaptive LLM Reasoning on Heterogeneous Graphs via "
        "Multi-Agent Dual-Evolving Context Retrieval",
        "2509.21710",
        "memory",
    ),
    System(
        "mac-spgg",
        "MAC-SPGG",
        "Everyone Contributes! Incentivizing Strategic Cooperation in Multi-LLM Systems via "
        "Sequential Public Goods Games",
        "2508.02076",
        "mechanisms",
        "partial",
    ),
    System("recgpt", "RecGPT", "RecGPT Technical Report", "2507.22879", "recsys"),
    System(
        "dynasaur",
        "DynaSaur",
        "DynaSaur: Large Language Agents Beyond Predefined Actions",
        "2411.01747",
        "agents",
    ),
    System(
        "repoclassbench",
        "RepoClassBench / RRR",
        "Class-Level Code Generation from Natural Language Using Iterative, Tool-Enhanced "
        "Reasoning over Repository",
        "2405.01573",
        "tools, envs",
    ),
    System(
        "kvshare",
        "KVShare",
        "KVShare: An LLM Service System with Efficient and Effective Multi-Tenant KV Cache Reuse",
        "2503.16525",
        "engine",
        "partial",
    ),
    System(
        "toolrl",
        "ToolRL",
        "ToolRL: Reward is All Tool Learning Needs",
        "2504.13958",
        "training",
        "works",
    ),
    System(
        "facility-location",
        "Facility location",
        "Strategyproof and Proportionally Fair Facility Location",
        "2111.01566",
        "mechanisms",
        "partial",
    ),
    System(
        "g-memory",
        "G-Memory",
        "G-Memory: Tracing Hierarchical Memory for Multi-Agent Systems",
        "2506.07398",
        "memory",
    ),
    System("second-me", "Second Me", "AI-native Memory 2.0: Second Me", "2503.08102", "memory"),
    System(
        "mos",
        "MoS",
        "MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards",
        "2410.00938",
        "models",
        "partial",
    ),
    System(
        "recoworld",
        "RecoWorld",
        "RecoWorld: Building Simulated Environments for Agentic Recommender Systems",
        "2509.10397",
        "envs",
    ),
    System(
        "hf-claims",
        "Hugging Face claims (SLR)",
        "What do we know about Hugging Face? A systematic literature review and quantitative "
        "validation of qualitative claims",
        "2406.08205",
        "hub",
    ),
    System(
        "ptm-reuse",
        "PTM reuse study",
        "An Empirical Study of Pre-Trained Model Reuse in the Hugging Face Deep Learning Model "
        "Registry",
        "2303.02552",
        "hub",
    ),
    System(
        "hf-community",
        "Hugging Face community reuse",
        "Deep Learning Model Reuse in the HuggingFace Community: Challenges, Benefit and Trends",
        "2401.13177",
        "hub",
    ),
    System(
        "govsim",
        "GovSim reproducibility",
        'Reproducibility Study of "Cooperate or Collapse: Emergence of Sustainable Cooperation in '
        'a Society of LLM Agents"',
        "2505.09289",
        "envs",
    ),
    System(
        "ponita",
        "PONITA",
        "Fast, Expressive SE(n) Equivariant Networks through Weight-Sharing in "
        "Position-Orientation Space",
        "2310.02970",
        "equivariant",
    ),
    System(
        "smhgc",
        "SMHGC",
        "SiMilarity-Enhanced Homophily for Multi-View Heterophilous Graph Clustering",
        "2410.03596",
        "clustering",
    ),
)


def find_system(name: str) -> System:
    """The system with this name; raises :class:`ConfigError`, naming the nearest."""
    known = {system.name: system for system in SYSTEMS}
    if name not in known:
        raise ConfigError(
            f"There is no system {name!r}.{nearest(name, known)} "
            "`shoal reproduce --list` shows all of them."
        )
    return known[name]
