"""Who comes into question, and the reasons of those who do not."""

from typing import Any

from regard.advice.question import Question
from regard.bench.entrants import able
from regard.factory import names
from regard.race.entrants import YARDSTICK, Entrant, Field, obstacle, parse


def choose(question: Question) -> Field:
    """Plain softmax first, then everybody who was named, or all mechanisms on such data.

    Raises:
        InputError: an unknown name, a variant that cannot do what is asked, or sizes that plain softmax cannot have.
    """
    data = ("map", "sequence") if question.space == "map" else ("sequence",)
    wanted = parse(question.mechanisms) or [Entrant(name) for kind in data for name in names(data=kind)]
    return able(wanted, lambda entrant: _hindrance(entrant, question), f"plain softmax ({YARDSTICK})")


def arguments(entrant: Entrant, question: Question) -> dict[str, Any]:
    """The arguments of :func:`regard.create`, or on maps of :func:`regard.models.map_attention`."""
    shared: dict[str, Any] = {"dim": question.dim, "num_heads": question.num_heads}
    if entrant.card.data != "map":
        shared["max_length"] = max(question.length, question.context or 0)
    if question.causal:
        shared["causal"] = True
    return {**shared, **entrant.options}


def call(entrant: Entrant, question: Question) -> str:
    """The exact call that makes the layer."""
    given = arguments(entrant, question)
    if entrant.name == YARDSTICK:
        given.pop("max_length")  # idle: plain softmax has no longest sequence
    words = "".join(f", {name}={value!r}" for name, value in given.items())
    make = "regard.create" if question.space == entrant.card.data else "regard.models.map_attention"
    return f'{make}("{entrant.name}"{words})'


def _hindrance(entrant: Entrant, question: Question) -> str:
    """Why this entrant does not come into question; empty where it does."""
    about = entrant.card
    if question.streaming and not about.streaming:
        return "has no memory, so it cannot go on token by token"
    if question.context and not about.cross:
        return "attends within one sequence, not to another"
    if question.causal and about.causal == "selection" and not question.mechanisms:
        return "causal by selection only (later tokens influence which keys are picked): name it to have it measured"
    smallest = question.sizes()[0]
    return obstacle(
        entrant,
        arguments(entrant, smallest if question.space == "map" else question),
        causal=question.causal,
        data=("map", "sequence") if question.space == "map" else ("sequence",),
        sides=smallest.sides,
    )
