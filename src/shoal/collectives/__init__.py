"""Fault-tolerant all-reduce between peers that come and go."""
