"""``regard.recommend``: the fastest mechanism for these shapes on this machine, measured and remembered."""

from collections.abc import Callable, Sequence
from datetime import datetime

import torch

from regard.advice.field import call, choose
from regard.advice.keeping import Kept, here, load, path_of, store
from regard.advice.measuring import Measuring
from regard.advice.question import Question, Space, facts, parse_bytes
from regard.advice.recommendation import Recommendation
from regard.advice.verdict import decide, rows_of
from regard.advice.workshop import Workshop
from regard.race.entrants import parse
from regard.tasks.documents import InputError


def recommend(
    length: int | tuple[int, int],
    *,
    batch: int = 1,
    dim: int = 512,
    num_heads: int = 8,
    data: Space = "sequence",
    context: int | None = None,
    causal: bool = False,
    backward: bool = True,
    streaming: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    max_memory: int | str | None = None,
    max_seconds: float | None = None,
    mechanisms: Sequence[str] | None = None,
    budget: float = 60.0,
    refresh: bool = False,
    say: Callable[[str], None] | None = None,
) -> Recommendation:
    """Measure the mechanisms on this machine and name the fastest, or plain softmax where none is clearly faster.

    Everybody takes turns in one process, at the asked length and at a quarter and a sixteenth of it (half and a quarter
    of the sides of a map), from which the crossover with plain softmax is read; memory is that of one call alone in a
    process. A mechanism is named over plain softmax only where its lead is larger than the spread of the rounds and
    than a tenth. This process computes nothing meanwhile. The measurements are kept in the user's cache folder by
    machine and question, so that the next call answers at once, also with other limits of memory and time.

    Mechanisms are different functions: speed is not quality, which ``regard race`` measures.

    Args:
        length: tokens, or (height, width) with ``data="map"``.
        batch, dim, num_heads: of the layer and its input.
        data: "sequence" or "map"; on maps mechanisms on sequences see the pixels row by row.
        context: tokens of another sequence that is attended to.
        causal: only those that never look ahead; those that do so by selection must be named.
        backward: forward and backward pass, as in training; False: forward without gradients.
        streaming: only those that can go on token by token with a memory.
        device, dtype: of weights and input.
        threads: of torch, on the CPU; None: as many as it has now.
        max_memory: of one call, in bytes or as "4GB"; weights and input count.
        max_seconds: of one call.
        mechanisms: NAME or NAME:option=value,... each; None: all. Those named are measured even where they are far
            behind.
        budget: seconds of measuring; whoever finds no room in them is left out and listed.
        refresh: measure even if there is an answer.
        say: told in one line what is going on.

    Returns:
        The answer, which prints as a table. Ctrl-C ends the measuring, and what was measured until then is the answer.

    Raises:
        InputError: a ValueError: arguments that make no sense, each with the way out.
        ImportError: the packages of ``regard[race]`` are missing.

    Example:
        >>> answer = recommend(8192, causal=True, max_memory="2GB")  # doctest: +SKIP
        >>> answer.name, answer.call  # doctest: +SKIP
        ('local', 'regard.create("local", dim=512, num_heads=8, max_length=8192, causal=True)')
    """
    sides = (length,) if isinstance(length, int) else tuple(length)
    _fitting(sides, data)
    question = Question(
        sides=sides,
        context=context,
        batch=batch,
        dim=dim,
        num_heads=num_heads,
        causal=causal,
        backward=backward,
        streaming=streaming,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads() if threads is None else threads,
        mechanisms=tuple(mechanisms or ()),
        budget=budget,
    )
    limit = parse_bytes(max_memory)
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"max_seconds={max_seconds} is not positive")
    notes: list[str] = []
    kept = None if refresh else _kept(question, notes)
    interrupted, fresh = False, kept is None
    if kept is None:
        kept, interrupted = _measure(question, say or _silent, notes)
    rows = rows_of(kept.points, kept.absent, question.length, max_memory=limit, max_seconds=max_seconds)
    name, sentence = decide(rows, question.where)
    return Recommendation(
        name=name,
        call=call(parse([name])[0], question) if name else "",
        sentence=sentence,
        rows=rows,
        question=question.in_words(),
        clock=question.clock,
        machine=kept.machine,
        measured=kept.measured,
        kept=not fresh,
        interrupted=interrupted,
        notes=tuple(notes),
    )


def _measure(question: Question, say: Callable[[str], None], notes: list[str]) -> tuple[Kept, bool]:
    """Measure now; keep it unless it was interrupted."""
    field = choose(question)
    with Workshop() as workshop:
        measuring = Measuring(question, field.entrants, say, workshop)
        measuring.run()
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    found = Kept(facts(question), here(question), when, measuring.points, list(field.absent))
    if measuring.interrupted:
        notes.append("Stopped before the end; nothing is kept.")
        return found, True
    try:
        store(path_of(question), found)
    except OSError as error:
        notes.append(f"The answer is not kept: {error.strerror}: {error.filename}")
    return found, False


def _kept(question: Question, notes: list[str]) -> Kept | None:
    path = path_of(question)
    try:
        return load(path)
    except ValueError as error:
        notes.append(f"{error}; measured anew.")
        return None


def _fitting(sides: tuple[int, ...], data: str) -> None:
    if data not in ("sequence", "map"):
        raise InputError(f'data={data!r} is neither "sequence" nor "map"')
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"length={sides} are no whole numbers")
    if len(sides) != (1 if data == "sequence" else 2):
        wanted = "one number of tokens" if data == "sequence" else "(height, width)"
        given = sides[0] if len(sides) == 1 else sides
        raise InputError(f'length={given}, but data="{data}" takes {wanted}')


def _silent(line: str) -> None:
    """Say nothing."""
