"""Aspect sentiment: several questions about one text, each with an answer of its own.

- SentiHood (Saeidi et al. 2016, arXiv:1610.03771), one JSON file a part: of every place that a sentence names
  (LOCATION1, LOCATION2) four aspects are asked; the answer is none, positive or negative. Opinions about other aspects
  are left out, as in the papers that compare themselves on it. The published parts are used as they are.
- SemEval-2014 task 4, restaurants (Pontiki et al. 2014), one XML file a part: of every sentence five categories are
  asked; the answer is positive, neutral, negative, conflict or none. No validation part is published: a tenth of the
  training sentences, those whose id has the smallest sha256, is held out of training.

Both are free for research and not ours to hand on: they are read from files that the user has. All questions about one
sentence, and in SentiHood about one place in it, stand together as a unit, in the order of the aspects.
"""

import hashlib
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.tasks.documents import InputError, read_file

ASPECTS = ("general", "price", "safety", "transit-location")
PLACES = ("LOCATION1", "LOCATION2")
CATEGORIES = ("food", "service", "price", "ambience", "anecdotes/miscellaneous")
SENTIHOOD_LABELS = ("none", "positive", "negative")
SEMEVAL_LABELS = ("positive", "neutral", "negative", "conflict", "none")


@dataclass(frozen=True)
class Asked:
    """A question about a text, and its answer: places in the lists of the data set; ``unit`` names the record."""

    text: str
    context: int
    label: int
    unit: str


@dataclass(frozen=True)
class AspectData:
    """Questions in three parts.

    Attributes:
        name: of the data set.
        contexts: what is asked.
        labels: the answers.
        aspects: how many questions a unit has; they follow one another.
        train, validation, test: the questions of each part.
    """

    name: str
    contexts: tuple[str, ...]
    labels: tuple[str, ...]
    aspects: int
    train: tuple[Asked, ...]
    validation: tuple[Asked, ...]
    test: tuple[Asked, ...]

    @property
    def none(self) -> int:
        """The label of what a text says nothing about."""
        return self.labels.index("none")


def read_sentihood(train: str | Path, validation: str | Path, test: str | Path) -> AspectData:
    """SentiHood from its three JSON files (train, dev, test).

    Raises:
        InputError: a file that is missing, no UTF-8 or no such JSON, with the number of the record.
    """
    contexts = tuple(f"{place} {aspect}" for place in PLACES for aspect in ASPECTS)
    first, second, third = (tuple(_sentihood(Path(path))) for path in (train, validation, test))
    return AspectData("SentiHood", contexts, SENTIHOOD_LABELS, len(ASPECTS), first, second, third)


def read_semeval(train: str | Path, test: str | Path) -> AspectData:
    """The restaurants of SemEval-2014 from their two XML files (Restaurants_Train, Restaurants_Test_Gold).

    Raises:
        InputError: a file that is missing, no UTF-8 or no such XML, with the number of the sentence.
    """
    learnt, judged = (tuple(_semeval(Path(path))) for path in (train, test))
    units = sorted({asked.unit for asked in learnt}, key=lambda unit: hashlib.sha256(unit.encode()).hexdigest())
    held = set(units[: len(units) // 10])
    first, second = (tuple(asked for asked in learnt if (asked.unit in held) == wanted) for wanted in (False, True))
    return AspectData("SemEval-2014 restaurants", CATEGORIES, SEMEVAL_LABELS, len(CATEGORIES), first, second, judged)


def example_data() -> AspectData:
    """Eight sentences of our own in the form of SentiHood: to see that everything runs, not to learn from."""
    tells = {
        "price": ("is very cheap", "is far too expensive"),
        "safety": ("is safe at night", "is full of crime"),
        "transit-location": ("is close to the tube", "has no station at all"),
        "general": ("is a great place to live", "is an awful place"),
    }
    rows = [
        Asked(f"LOCATION1 {said}, they say", place, number + 1 if ASPECTS[place] == aspect else 0, said)
        for aspect, answers in tells.items()
        for number, said in enumerate(answers)
        for place in range(len(ASPECTS))
    ]
    contexts = tuple(f"{place} {aspect}" for place in PLACES for aspect in ASPECTS)
    return AspectData("examples", contexts, SENTIHOOD_LABELS, len(ASPECTS), tuple(rows), tuple(rows), tuple(rows))


def _sentihood(path: Path) -> Iterator[Asked]:
    try:
        records: Any = json.loads(_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(records, list) or not records:
        raise InputError(
            f"{path} is no list of records: SentiHood's files are [{{'text': ..., 'opinions': [...]}}, ...]"
        )
    for number, record in enumerate(records, start=1):
        where = f"{path}, record {number}"
        text, opinions = _field(record, "text", str, where), _field(record, "opinions", list, where)
        said: dict[tuple[str, str], int] = {}
        for opinion in opinions:
            place, aspect, label = (
                _field(opinion, key, str, where) for key in ("target_entity", "aspect", "sentiment")
            )
            if label.lower() not in SENTIHOOD_LABELS[1:]:
                raise InputError(f"{where}: sentiment {label!r} is neither Positive nor Negative")
            if place not in PLACES or place not in text:
                raise InputError(f"{where}: an opinion about {place!r}, which is no place that the text names")
            answer = SENTIHOOD_LABELS.index(label.lower())
            if said.setdefault((place, aspect), answer) != answer:
                raise InputError(f"{where}: two opinions about the {aspect} of {place} that contradict each other")
        for place in PLACES:
            if place not in text:
                continue
            for aspect in ASPECTS:
                context = PLACES.index(place) * len(ASPECTS) + ASPECTS.index(aspect)
                yield Asked(text.strip(), context, said.get((place, aspect), 0), f"{path.name}:{number}:{place}")


def _semeval(path: Path) -> Iterator[Asked]:
    text = _text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(
            f"{path} declares a document type or entities: the files of SemEval have none, so it is not read"
        )
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not valid XML: {error}") from error
    sentences = root.findall("sentence")
    if root.tag != "sentences" or not sentences:
        raise InputError(f"{path} has no <sentence> in <sentences>: is it a file of SemEval-2014 task 4?")
    for number, sentence in enumerate(sentences, start=1):
        where = f"{path}, sentence {number}"
        body = sentence.findtext("text")
        if not body:
            raise InputError(f"{where}: it has no text")
        said: dict[str, int] = {}
        for found in sentence.iter("aspectCategory"):
            category, label = found.get("category"), found.get("polarity")
            if category not in CATEGORIES:
                raise InputError(f"{where}: category {category!r} is none of {', '.join(CATEGORIES)}")
            if label not in SEMEVAL_LABELS[:-1]:
                raise InputError(f"{where}: polarity {label!r} is none of {', '.join(SEMEVAL_LABELS[:-1])}")
            said.setdefault(category, SEMEVAL_LABELS.index(label))  # of two that are the same, the first counts
        none = SEMEVAL_LABELS.index("none")
        for context, category in enumerate(CATEGORIES):
            yield Asked(body.strip(), context, said.get(category, none), f"{path.name}:{sentence.get('id', number)}")


def _text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start:,}") from error


def _field(record: Any, key: str, kind: type, where: str) -> Any:
    """What stands under a key, if it is of this kind."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise InputError(f"{where}: expected {key!r} to be a {kind.__name__}, found {value!r}")
    return value


def read_published(files: Sequence[str | Path]) -> AspectData:
    """Three JSON files of SentiHood, or the two XML files of SemEval-2014, in the order train, (dev,) test.

    Raises:
        InputError: another number of files, or what the two readers refuse.
    """
    if len(files) == 3:
        return read_sentihood(*files)
    if len(files) == 2:
        return read_semeval(*files)
    raise InputError(f"{len(files)} files: SentiHood has three (train, dev, test), SemEval-2014 two (train, test)")
