"""Rewards that are made of parts, and say what they gave for what."""

from shoal.training.rewards.tool_call import (
    VARIANTS,
    RewardBreakdown,
    ToolCallReward,
    variant,
)

__all__ = ["VARIANTS", "RewardBreakdown", "ToolCallReward", "variant"]
