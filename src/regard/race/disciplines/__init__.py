"""The tasks that can be raced, by name."""

from regard.race.disciplines.classify import CLASSIFY
from regard.race.disciplines.fewshot import FEWSHOT
from regard.race.disciplines.images import IMAGES
from regard.race.disciplines.listops import LISTOPS
from regard.race.disciplines.lm import LM
from regard.race.disciplines.pairs import PAIRS
from regard.race.disciplines.pathfinder import PATHFINDER
from regard.race.disciplines.pixels import PIXELS
from regard.race.disciplines.probes import COPY, RECALL
from regard.race.disciplines.segmentation import SEGMENTATION
from regard.race.disciplines.series import SERIES
from regard.race.disciplines.sets import SETS
from regard.race.disciplines.translation import TRANSLATION

_ALL = (
    *(LM, CLASSIFY, LISTOPS, PATHFINDER, COPY, RECALL, SERIES),
    *(IMAGES, SEGMENTATION, SETS, PIXELS, TRANSLATION, PAIRS, FEWSHOT),
)
DISCIPLINES = {discipline.name: discipline for discipline in _ALL}
"""Every value of ``--task``; the first is the default."""
