"""Engines: local, remote and scripted ones behind the same protocol."""
