"""Looking at modules: :mod:`regard.inspect.check` finds leaks, ignored masks and what else breaks in real use."""

from regard.inspect.report import Report, Row

__all__ = ["Report", "Row"]
