"""Tools: what can be called, where it is described, and how it is found."""
