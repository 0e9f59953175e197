"""Agents, channels, protocols, teams and the scheduler that runs them."""
