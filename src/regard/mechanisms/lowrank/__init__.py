"""Fewer keys: attention to a small number of landmarks, mixtures or slots instead of every token."""
