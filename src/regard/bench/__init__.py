"""``regard bench``: time and memory of the mechanisms against dense attention, at growing lengths."""
