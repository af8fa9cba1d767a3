"""Two sequences or two maps meet: one asks, the other answers, or both do both."""
