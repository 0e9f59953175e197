"""Public goods: contributions in sequence, their equilibria, and when contributing pays."""
