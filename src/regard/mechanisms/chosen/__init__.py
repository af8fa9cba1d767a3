"""Content picks the pairs: a query sees the keys that are like it."""
