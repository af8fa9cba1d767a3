"""The entry for tools outside the project: ``replay(tensors, meta) -> tensors``."""

from regard.authors.replay import replay

__all__ = ["replay"]
