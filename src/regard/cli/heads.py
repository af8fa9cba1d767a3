"""``regard heads``: the model, the sentences, the folder, and the terminal."""

from collections import Counter
from pathlib import Path
from typing import Literal

from rich.markup import escape

from regard.cli.display import make_console, say
from regard.cli.folders import new_folder
from regard.inspect import heads
from regard.inspect.head_roles import RELATIONS
from regard.race.model_sources import load_model
from regard.race.page.heads import KINDS, render_heads
from regard.tasks.documents import InputError
from regard.tasks.treebank import read_sentences
from regard.tasks.writing import write_file

DEFAULT_FOLDER = "regard-heads"


def print_heads(
    model: str,
    data: Path,
    *,
    out: Path | None,
    sentences: int,
    examples: int,
    positional: float,
    margin: float,
    rare: float | None,
    relations: str | None,
    too_long: Literal["refuse", "skip"],
    device: str,
) -> None:
    """Look at all heads, print the table, write ``heads.json`` and ``heads.html``.

    Args:
        model: as :func:`regard.race.model_sources.load_model` takes it.
        data: a text with a sentence a line, or CoNLL-U.
        out: the folder; None: a new one.
        sentences: how many are looked at, from the beginning; rare words are told by all of the file.
        examples: how many of them are drawn.
        positional, margin, rare, relations, too_long: as in :func:`regard.inspect.heads`.
        device: what to compute on.
    """
    for name, number in (("--sentences", sentences), ("--examples", examples)):
        if number < 1:
            raise InputError(f"{name} {number} is not positive")
    console = make_console()
    folder = new_folder(out, DEFAULT_FOLDER, "heads.json", "a report on heads")
    with console.status("") as status:
        found = read_sentences(data)
        status.update(escape(f"loading {model}"))
        loaded = load_model(model)
        chosen = found[:sentences]
        status.update(f"looking at {len(chosen):,} sentences")
        counts = Counter(word for sentence in found for word in sentence.words)
        report = heads(
            loaded.model.to(device),
            chosen,
            loaded.tokenizer,
            loss=loaded.loss,
            positional_share=positional,
            syntactic_margin=margin,
            rare_share=rare,
            counts=counts,
            too_long=too_long,
            examples=examples,
            relations=RELATIONS if relations is None else tuple(relations.split(",")),
        )
    told = report.save(folder)
    page = folder / "heads.html"
    write_file(page, render_heads(report, model=loaded.name, data=data.name).encode())
    counted = ", ".join(f"{len(report.of_kind(kind))} {kind}" for kind in KINDS)
    for text in (report.table(), f"{len(report.heads)} heads: {counted}", f"{told}  {page}"):
        say(console, text)
