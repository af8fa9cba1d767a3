"""Looking at modules: what breaks in real use (:mod:`regard.inspect.check`), and who looks at whom."""

from regard.inspect.head_gates import HeadGates, gate_heads
from regard.inspect.head_importance import head_confidence, head_importance
from regard.inspect.head_removal import load_pruned, prune_heads
from regard.inspect.head_report import HeadsReport
from regard.inspect.head_roles import heads
from regard.inspect.maps import Map, attention_map, bertviz
from regard.inspect.model_maps import attention_maps
from regard.inspect.report import Report, Row
from regard.inspect.sentences import Sentence

__all__ = [
    "HeadGates",
    "HeadsReport",
    "Map",
    "Report",
    "Row",
    "Sentence",
    "attention_map",
    "attention_maps",
    "bertviz",
    "gate_heads",
    "head_confidence",
    "head_importance",
    "heads",
    "load_pruned",
    "prune_heads",
]
