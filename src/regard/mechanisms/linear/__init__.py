"""Kernels and states: attention in time linear in the length."""
