"""Commands that do their work with a small model, trained on real data first where there is none yet."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from regard.cli.errors import plain_errors

Budget = Annotated[str, typer.Option(help="Time to train where there is no model yet, such as 90s, 10m or 1h.")]


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Recordings of speech: wav, flac, ogg or mp3.")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a recogniser; one is trained into it where there is none. [default: regard-speech]"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="What to train on: an unpacked package, or recordings with texts (a table of file, tab, text; "
            "name.txt beside name.wav; or LibriSpeech's lists). [default: Asterisk's English prompts, if installed]"
        ),
    ] = None,
    budget: Budget = "10m",
    decoder: Annotated[
        Literal["ctc", "attention", "joint"], typer.Option(help="Which part of the model writes, or both together.")
    ] = "joint",
    beams: Annotated[int, typer.Option(help="Texts kept by the search; 1 with ctc reads greedily.")] = 8,
    picture: Annotated[
        Literal["png", "svg"], typer.Option(help="Format of the pictures of sound, words and attention.")
    ] = "png",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results. [default: a new regard-transcripts, regard-transcripts-2, ...]"),
    ] = None,
) -> None:
    """What is said in recordings, when, and how certain that is."""
    with plain_errors():
        from regard.cli.transcribe import print_transcripts
        from regard.train.budget import parse_seconds

        good = print_transcripts(
            files,
            model=model,
            data=data,
            seconds=parse_seconds(budget),
            out=out,
            decoder=decoder,
            beams=beams,
            picture=picture,
        )
    raise typer.Exit(0 if good else 1)


def compose(
    out: Annotated[
        Path, typer.Option(help="The sound that is written: .wav, .flac or .ogg; a picture and a JSON lie beside it.")
    ],
    seconds: Annotated[float, typer.Option(help="How much music is new.")] = 4.0,
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of the model; it is trained into it where there is none. [default: regard-music]"),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file of sound or a folder to learn from; may be repeated. [default: the Debian package "
            "asterisk-moh-opsound-wav, if it is installed]"
        ),
    ] = None,
    budget: Budget = "10m",
    prime: Annotated[
        Path | None, typer.Option(help="A recording that is continued: its last 8 seconds are heard.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the training and of the music.")] = 0,
    temperature: Annotated[float, typer.Option(help="Below 1 is tamer; 0 always takes the likeliest code.")] = 0.95,
    top_p: Annotated[
        float | None, typer.Option(help="Only the likeliest codes are drawn, as few as have this probability together.")
    ] = None,
) -> None:
    """Music by a small Jukebox, measured beside real music, silence and noise."""
    with plain_errors():
        from regard.cli.compose import print_composition
        from regard.train.budget import parse_seconds

        print_composition(
            out,
            seconds=seconds,
            model=model,
            data=data,
            budget=parse_seconds(budget),
            prime=prime,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
        )


def fold(
    sequence: Annotated[
        Path, typer.Argument(help="A sequence (FASTA) or an alignment (A3M, aligned FASTA); the first row is folded.")
    ],
    out: Annotated[
        Path, typer.Option(help="The structure that is written, .pdb or .cif; a picture and a JSON lie beside it.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of the model; it is trained into it where there is none. [default: regard-protein]"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Structures and alignments to learn from, or the unpacked Debian package theseus-examples. [default: "
            "the installed one]"
        ),
    ] = None,
    budget: Budget = "10m",
    truth: Annotated[Path | None, typer.Option(help="A structure of the same protein to compare with.")] = None,
    chain: Annotated[str | None, typer.Option(help="Which chain of the truth. [default: its only one]")] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Fold only the beginning of a sequence that is too long.")
    ] = False,
) -> None:
    """A protein by a small AlphaFold: its C-alphas, the confidence of each, and a map of contacts."""
    with plain_errors():
        from regard.cli.fold import print_fold
        from regard.train.budget import parse_seconds

        print_fold(
            sequence,
            out,
            model=model,
            data=data,
            seconds=parse_seconds(budget),
            truth=truth,
            chain=chain,
            truncate=truncate,
        )
