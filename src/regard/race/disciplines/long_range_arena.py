"""What Long Range Arena published for the tasks that can be drawn here (Tay et al. 2021, arXiv:2011.04006)."""

from regard.race.discipline import Published

SOURCE = "Long Range Arena, README of google-research/long-range-arena, 2020-11-08"

_PERCENT = {  # ListOps, Pathfinder
    "Transformer": (36.37, 71.40),
    "Local Attention": (15.82, 66.63),
    "Linear Transformer": (16.13, 75.30),
    "Reformer": (37.27, 68.50),
    "Sparse Transformer": (17.07, 71.71),
    "Sinkhorn": (33.67, 67.45),
    "Linformer": (35.70, 76.34),
    "Performer": (18.01, 77.05),
    "Synthesizer": (36.99, 69.45),
    "Longformer": (35.63, 69.71),
    "BigBird": (36.05, 74.87),
}


def published(column: int, remark: str) -> Published:
    """The accuracies of one column (0 ListOps, 1 Pathfinder) as shares of 1, the best at the top."""
    rows = sorted(_PERCENT.items(), key=lambda row: -row[1][column])
    return Published(SOURCE, tuple((name, values[column] / 100) for name, values in rows), remark)
