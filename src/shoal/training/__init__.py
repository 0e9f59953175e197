"""Training: weights that a group learns together."""
