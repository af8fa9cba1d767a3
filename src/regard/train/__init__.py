"""The training loop's few parts on top of Accelerate: budget, step, checkpoint, resume, and where the time goes."""
