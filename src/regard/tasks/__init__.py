"""Real data and objectives: what a model is trained and judged on."""
