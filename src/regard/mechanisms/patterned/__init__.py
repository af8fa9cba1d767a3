"""Exact softmax attention over a fixed pattern of pairs."""
