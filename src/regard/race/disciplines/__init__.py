"""The tasks that can be raced, by name."""

from regard.race.disciplines.classify import CLASSIFY
from regard.race.disciplines.listops import LISTOPS
from regard.race.disciplines.lm import LM
from regard.race.disciplines.pathfinder import PATHFINDER
from regard.race.disciplines.probes import COPY, RECALL
from regard.race.disciplines.series import SERIES

DISCIPLINES = {discipline.name: discipline for discipline in (LM, CLASSIFY, LISTOPS, PATHFINDER, COPY, RECALL, SERIES)}
"""Every value of ``--task``; the first is the default."""
