"""Questions about scenes, with programs, and the answers that the programs give.

The scenes are those of :mod:`regard.tasks.scenes`. D names things by colour, by shape or by both ("red thing", "ring",
"red ring"), one of the three ways, drawn as often. After "the" colour and shape are those of a thing of the scene, else
any. A DIRECTION is "left of", "right of", "above" or "below".

======================== ==== ================================================================== ========
kind                     hops words                                                              answers
======================== ==== ================================================================== ========
exist                    0    is there a D ?                                                     yes, no
count                    0    how many Ds are there ?                                            0-3
colour                   0    what colour is the SHAPE ?                                         a colour
shape                    0    what shape is the COLOUR thing ?                                   a shape
more                     0    are there more Ds than Ds ?                                        yes, no
colour of nearest        1    what colour is the thing nearest to the D ?                        a colour
shape of nearest         1    what shape is the thing nearest to the D ?                         a shape
count beside             1    how many things are DIRECTION the D ?                              0-3
exist beside             1    is there a D DIRECTION the D ?                                     yes, no
same colour, same shape  1    is the thing nearest to the D of the same X ?                      yes, no
colour of second nearest 2    what colour is the thing nearest to the thing nearest to the D ?   a colour
count beside nearest     2    how many things are DIRECTION the thing nearest to the D ?         0-3
exist beside nearest     2    is there a D DIRECTION the thing nearest to the D ?                yes, no
======================== ==== ================================================================== ========

A program starts with all things: "filter" keeps those that D names, "unique" takes the only one, "nearest" goes on to
the thing with the nearest centre among those that the program has not passed yet, "beside" takes all other things whose
centre lies in that direction. A hop is a "nearest" or a "beside".

A question is ambiguous, and rejected, where "the D" is none or several things; where the second nearest thing is less
than 1.5 farther than the nearest one; where any other thing differs by less than 2 in the coordinate that decides on
"beside"; and where one side of "more" includes the other by its words, or both are equally many. A count above 3 has no
answer. For each question the kind is drawn first, then, where answers are truths or counts, the answer; then scenes,
each with 10 questions of that kind, until one of them has it. So kinds are equally frequent, and answers in each of
them; colours and shapes are so by themselves, since nothing tells them apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from regard.tasks.scenes import COLOURS, SHAPES, Scene, Thing, below, draw_scene, one

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Name -> which coordinate of (x, y) decides, and its sign."""

_TRUTHS, _COUNTS = ("yes", "no"), ("0", "1", "2", "3")
ANSWERS = (*_TRUTHS, *COLOURS, *SHAPES, *_COUNTS)
KINDS: dict[str, tuple[int, Sequence[str]]] = {
    "exist": (0, _TRUTHS),
    "count": (0, _COUNTS),
    "colour": (0, tuple(COLOURS)),
    "shape": (0, SHAPES),
    "more": (0, _TRUTHS),
    "colour of nearest": (1, tuple(COLOURS)),
    "shape of nearest": (1, SHAPES),
    "count beside": (1, _COUNTS),
    "exist beside": (1, _TRUTHS),
    "same colour": (1, _TRUTHS),
    "same shape": (1, _TRUTHS),
    "colour of second nearest": (2, tuple(COLOURS)),
    "count beside nearest": (2, _COUNTS),
    "exist beside nearest": (2, _TRUTHS),
}
"""Kind -> hops and answers."""

QUESTIONS = 10
NEARER, ASIDE = 1.5, 2.0
WORDS = (
    *("(pad)", "?", "a", "are", "colour", "how", "is", "many", "more", "nearest", "of", "same", "shape", "than", "the"),
    *("there", "thing", "things", "to", "what", *DIRECTIONS, *COLOURS, *SHAPES, "squares", "crosses", "rings"),
)
"""Of all questions; the first one is padding."""

LONGEST = 15
"""Words of the longest question."""

Name = tuple[str | None, str | None]
"""A colour, a shape or both."""
Words = tuple[str, ...]
Step = tuple[str, Any]
"""What is done, and with what."""
Program = tuple[Step, ...]


@dataclass(frozen=True)
class Question:
    """Words, the program that they mean, and what it answers about the scene.

    Attributes:
        kind: one of ``KINDS``.
        words: as they are read.
        program: its steps, each a name and what belongs to it.
        scene: what is asked about.
        answer: what the program gives.
    """

    kind: str
    words: tuple[str, ...]
    program: tuple[Step, ...]
    scene: Scene
    answer: str


def draw_question(random: Random) -> Question:
    """One question and its scene; a kind and an answer first, then what fits them."""
    kind = one(random, tuple(KINDS))
    answers = KINDS[kind][1]
    wanted = one(random, answers) if answers in (_TRUTHS, _COUNTS) else None
    while True:
        scene = draw_scene(random)
        for _ in range(QUESTIONS):
            words, program = phrase(kind, scene, random)
            answer = execute(program, scene)
            if answer is not None and answer == (wanted or answer):
                return Question(kind, words, program, scene, answer)


class _Parts(NamedTuple):
    """What questions are made of.

    Attributes:
        the, start: "the D", and the program that takes it.
        near, hop: "the thing nearest to the D", and its program.
        name, names: a name of any things, and its plural.
        others: the plural of another name; ``pair`` holds both.
        side, direction: words and name of a direction.
    """

    the: Words
    start: Program
    near: Words
    hop: Program
    name: Words
    names: Words
    others: Words
    pair: tuple[Name, Name]
    side: Words
    direction: str


_Template = Callable[[_Parts], tuple[Words, Program]]


def _query(what: str) -> dict[str, _Template]:
    """What asks for a colour, or for a shape."""
    ask, same = ("query", what), ("same", what)
    return {
        what: lambda p: (("what", what, "is", *p.the), (*p.start, ask)),
        f"{what} of nearest": lambda p: (("what", what, "is", *p.near), (*p.hop, ask)),
        f"same {what}": lambda p: (("is", *p.near, "of", "the", "same", what), (*p.hop, same)),
    }


def _beside_question(kind: str, words: str, program: str) -> dict[str, _Template]:
    """What asks for things beside one: "the" D with its "start", or the one "near" it, a "hop" away."""

    def aside(p: _Parts) -> Program:
        return (*getattr(p, program), ("beside", p.direction))

    return {
        f"count {kind}": lambda p: (
            ("how", "many", "things", "are", *p.side, *getattr(p, words)),
            (*aside(p), ("count", None)),
        ),
        f"exist {kind}": lambda p: (
            ("is", "there", "a", *p.name, *p.side, *getattr(p, words)),
            (*aside(p), ("filter", p.pair[0]), ("exist", None)),
        ),
    }


_SECOND = ("what", "colour", "is", "the", "thing", "nearest", "to")
_TEMPLATES: dict[str, _Template] = {
    "exist": lambda p: (("is", "there", "a", *p.name), (("filter", p.pair[0]), ("exist", None))),
    "count": lambda p: (("how", "many", *p.names, "are", "there"), (("filter", p.pair[0]), ("count", None))),
    "more": lambda p: (("are", "there", "more", *p.names, "than", *p.others), (("more", p.pair),)),
    "colour of second nearest": lambda p: ((*_SECOND, *p.near), (*p.hop, ("nearest", None), ("query", "colour"))),
    **_query("colour"),
    **_query("shape"),
    **_beside_question("beside", "the", "start"),
    **_beside_question("beside nearest", "near", "hop"),
}


def phrase(kind: str, scene: Scene, random: Random) -> tuple[Words, Program]:
    """A question of a kind about a scene, as words and as a program; it may turn out to be ambiguous."""
    thing = one(random, scene)
    named: Name = (None, thing.shape) if kind == "colour" else (thing.colour, None)
    if kind not in ("colour", "shape"):
        named = _named(random, thing.colour, thing.shape)
    pair = tuple(_named(random, one(random, tuple(COLOURS)), one(random, SHAPES)) for _ in range(2))
    direction = one(random, tuple(DIRECTIONS))
    the, start = ("the", *_spoken(named)), (("filter", named), ("unique", None))
    parts = _Parts(
        the,
        start,
        ("the", "thing", "nearest", "to", *the),
        (*start, ("nearest", None)),
        _spoken(pair[0]),
        _spoken(pair[0], True),
        _spoken(pair[1], True),
        (pair[0], pair[1]),
        (direction, "of") if direction in ("left", "right") else (direction,),
        direction,
    )
    words, program = _TEMPLATES[kind](parts)
    return (*words, "?"), program


def execute(program: Sequence[Step], scene: Scene) -> str | None:
    """What a program answers about a scene; None where the question is ambiguous.

    Example:
        >>> scene = (Thing("red", "ring", 5, 5, 3), Thing("blue", "cross", 15, 5, 3), Thing("red", "cross", 27, 9, 3))
        >>> execute([("filter", (None, "ring")), ("unique", None), ("nearest", None), ("query", "colour")], scene)
        'blue'
    """
    found, passed = list(scene), list[Thing]()
    for step, what in program:
        if step == "filter":
            found = [thing for thing in found if _fits(thing, what)]
        elif step == "unique":
            if len(found) != 1:
                return None
            passed = found
        elif step == "nearest":
            nearest = _nearest(passed[-1], [thing for thing in scene if thing not in passed])
            if nearest is None:
                return None
            passed = [*passed, nearest]
        elif step == "beside":
            sides = _beside(passed[-1], scene, what)
            if sides is None:
                return None
            found = sides
        else:
            return _answer(step, what, found, passed, scene)
    return None


def _answer(step: str, what: Any, found: list[Thing], passed: list[Thing], scene: Scene) -> str | None:
    """What the last step of a program says."""
    if step == "query":
        return getattr(passed[-1], what)
    if step == "same":
        return "yes" if getattr(passed[-1], what) == getattr(passed[-2], what) else "no"
    if step == "exist":
        return "yes" if found else "no"
    if step == "count":
        return str(len(found)) if str(len(found)) in _COUNTS else None
    (name, other), (left, right) = what, (sum(_fits(thing, name) for thing in scene) for name in what)
    if _includes(name, other) or _includes(other, name) or left == right:
        return None
    return "yes" if left > right else "no"


def _nearest(thing: Thing, others: list[Thing]) -> Thing | None:
    distances = sorted((((o.x - thing.x) ** 2 + (o.y - thing.y) ** 2) ** 0.5, place) for place, o in enumerate(others))
    if not distances or (len(distances) > 1 and distances[1][0] - distances[0][0] < NEARER):
        return None
    return others[distances[0][1]]


def _beside(thing: Thing, scene: Scene, direction: str) -> list[Thing] | None:
    axis, sign = DIRECTIONS[direction]
    others = [other for other in scene if other is not thing]
    ahead = [sign * ((other.x, other.y)[axis] - (thing.x, thing.y)[axis]) for other in others]
    if any(abs(distance) < ASIDE for distance in ahead):
        return None
    return [other for other, distance in zip(others, ahead, strict=True) if distance > 0]


def _fits(thing: Thing, name: Name) -> bool:
    return name[0] in (None, thing.colour) and name[1] in (None, thing.shape)


def _includes(name: Name, other: Name) -> bool:
    """Whatever the other one names, this one does."""
    return all(part is None or part == narrower for part, narrower in zip(name, other, strict=True))


def _named(random: Random, colour: str, shape: str) -> Name:
    return ((colour, None), (None, shape), (colour, shape))[below(random, 3)]


def _spoken(name: Name, several: bool = False) -> tuple[str, ...]:
    colour, shape = name
    noun = shape or "thing"
    noun = noun if not several else "crosses" if noun == "cross" else f"{noun}s"
    return (noun,) if colour is None else (colour, noun)
