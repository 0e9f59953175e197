"""Approximate reuse of KV cache between requests that hold the same text at other places."""
