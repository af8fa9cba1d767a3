"""Looking at modules: what breaks in real use (:mod:`regard.inspect.check`), and who looks at whom."""

from regard.inspect.maps import Map, attention_map, bertviz
from regard.inspect.report import Report, Row

__all__ = ["Map", "Report", "Row", "attention_map", "bertviz"]
