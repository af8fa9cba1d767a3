"""The commands: what they are called, what they take, and which function does the work."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from regard.cli.choosing import Dtype, explore, recommend
from regard.cli.errors import plain_errors
from regard.cli.small_models import compose, fold, transcribe

TaskName = Literal[
    "lm", "classify", "listops", "pathfinder", "copy", "recall", "series", "images", "segmentation", "sets", "pixels",
    "translation", "pairs", "fewshot",
]  # fmt: skip

app = typer.Typer(
    name="regard",
    help="Every published attention mechanism in one place, and a race between them on your own text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def race(
    files: Annotated[
        list[str] | None, typer.Argument(help="Files or directories, any bytes; without them the default text.")
    ] = None,
    task: Annotated[
        TaskName | None,
        typer.Option(
            help="Predict the next byte (lm) or name the class of a text (classify); or, on data that is drawn: nested "
            "lists (listops), connected paths (pathfinder), repeating a sequence (copy), looking up pairs (recall); or "
            "forecast (series) weather or a CSV file with a column of dates; or name the class of an image (images): "
            "clothes, or a folder with a subfolder for each class; or of each pixel (segmentation): coasts from above, "
            "or a folder with images/ and masks/; or answer for a whole set of points (sets): clusters, max or fashion "
            "by that word; or predict the next pixel (pixels) of clothes or of a folder of images; or translate "
            "(translation) LibreOffice's help, two files of lines or a folder of such files; or tell whether two "
            "sentences belong together (pairs): its translations, or a file of label, tab, first, tab, second; or name "
            "the class of an image by a few examples of new classes (fewshot): clothes, or a folder with a subfolder "
            "for each class, perhaps behind 5-shot. [default: lm]"
        ),
    ] = None,
    scale: Annotated[
        Literal["small", "full"] | None,
        typer.Option(
            help="Of drawn data and images: what fits the default budget, or the published benchmark. [default: small]"
        ),
    ] = None,
    horizon: Annotated[int | None, typer.Option(help="Steps to forecast, with --task series. [default: 24]")] = None,
    mechanisms: Annotated[
        list[str] | None,
        typer.Option(
            help="all, causal, or NAME or NAME:option=value,..., with commas between. [default: a field of 8]"
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            help="Positions per sequence, or the side in pixels to which images are scaled or of the tiles into which "
            "they are cut. [default: 2048 bytes; as the task has it]"
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Training time of each entrant, such as 60s or 2m. [default: 14s]")
    ] = None,
    ngram: Annotated[
        int | None, typer.Option(help="Bytes that each position reads at the input; 1: only its own. [default: 4]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of each entrant, instead of a time.")] = None,
    dim: Annotated[int | None, typer.Option(help="Width of the Transformer. [default: 128]")] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks. [default: 2]")] = None,
    num_heads: Annotated[int | None, typer.Option(help="Heads. [default: 4]")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences or images per step. [default: 1]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate. [default: 0.003]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of shared weights and data order. [default: 0]")] = None,
    device: Annotated[
        Literal["auto", "cpu"] | None, typer.Option(help="An accelerator if there is one, or never. [default: auto]")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder for results. [default: a new regard-race, regard-race-2, ...]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted race in the folder.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Seconds instead of minutes: a tiny race on a built-in text.")
    ] = False,
) -> None:
    """Train the same small Transformer once per mechanism on your text, and see which attention suits it."""
    with plain_errors():
        from regard.cli.display import Display
        from regard.race.event import hold_race
        from regard.train.budget import parse_seconds

        given: dict[str, Any] = {
            "files": tuple(files) if files else None,
            "smoke": smoke or None,
            "task": task,
            "scale": scale,
            "horizon": horizon,
            "mechanisms": tuple(mechanisms) if mechanisms else None,
            "length": length,
            "ngram": ngram,
            "seconds": None if budget is None else parse_seconds(budget),
            "steps": steps,
            "dim": dim,
            "depth": depth,
            "num_heads": num_heads,
            "batch": batch,
            "learning_rate": learning_rate,
            "seed": seed,
            "device": device,
        }
        display = Display()
        results, folder = hold_race(given, display, out=out, resume=resume)
        display.finish(results, folder)
    if results["interrupted"]:
        raise typer.Exit(130)
    if not results["verdict"]["pick"]:
        raise typer.Exit(1)


@app.command("list")
def list_(
    data: Annotated[
        Literal["sequence", "map", "set", "pair"] | None, typer.Option(help="Only those that run on this.")
    ] = None,
    causal: Annotated[
        bool | None, typer.Option(help="Only those that can be causal, or only those that cannot.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only those of this family, such as linear.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """The mechanisms in a table."""
    with plain_errors():
        from regard.cli.catalogue import print_list

        print_list(data=data, causal=causal, family=family, as_json=as_json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A mechanism; regard list names them.")],
    png: Annotated[Path | None, typer.Option(help="Draw the pattern into this file instead of the terminal.")] = None,
    length: Annotated[int, typer.Option(help="Positions of the picture.")] = 1024,
    causal: Annotated[bool | None, typer.Option(help="The causal form. [default: where there is one]")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the mechanism: name=value; may be repeated.")
    ] = None,
) -> None:
    """A mechanism's card: paper, formula, cost, and a picture of its pattern."""
    with plain_errors():
        from regard.cli.catalogue import print_card

        print_card(name, png=png, length=length, causal=causal, options=option or [])


@app.command()
def doctor() -> None:
    """Versions, engines, threads, what is missing and how to get it."""
    with plain_errors():
        from regard.cli.doctor import print_doctor

        print_doctor()


@app.command()
def check(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="MODULE",
            help="PATH.py:Class or package.module:Class (an nn.Module, or a function that makes one), or a folder with "
            "config.json.",
        ),
    ],
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="A constructor argument, or an entry of the model's configuration: name=value; may be repeated."
        ),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            help="Shapes of the inputs, such as 2x17x32, or ids such as 2x17:256. [default: made for models of "
            "transformers]"
        ),
    ] = None,
    causal: Annotated[
        Literal["strict", "selection"] | None, typer.Option(help="Hold it to this; without it leaks are only reported.")
    ] = None,
    mask_name: Annotated[
        str,
        typer.Option(
            help="What forward calls the mask of real positions; in models of transformers it is attention_mask."
        ),
    ] = "key_mask",
    mask_true: Annotated[Literal["keep", "drop"], typer.Option(help="What True means in that mask.")] = "keep",
    time_dim: Annotated[int, typer.Option(help="The axis of time in the inputs.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the report, in Markdown, into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look for causal leaks, padding leaks and other broken promises in any nn.Module; exit code 1 if one is found."""
    with plain_errors():
        from regard.cli.checking import print_check

        ok = print_check(
            spec,
            option or (),
            inputs,
            out=out,
            as_json=as_json,
            causal=causal,
            mask_name=mask_name,
            mask_true=mask_true,
            time_dim=time_dim,
        )
    raise typer.Exit(0 if ok else 1)


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Mechanisms, or mechanism/case; without them everything.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Replay the *.safetensors files in here instead of those that came with regard.")
    ] = None,
    device: Annotated[str, typer.Option(help="What to compute on, such as cpu or cuda.")] = "cpu",
    dtype: Annotated[
        Dtype | None, typer.Option(help="What to compute in. [default: as recorded, nearly always float32]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Repeat the numbers of the authors' own code on this machine; exit code 1 unless all of them are met."""
    with plain_errors():
        from regard.cli.verification import print_verification

        ok = print_verification(names or (), folder=folder, device=device, dtype=dtype, as_json=as_json)
    raise typer.Exit(0 if ok else 1)


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="NAME or NAME:option=value,... each; without them all mechanisms on sequences."),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens, with commas between; 1k is 1024.")] = "1k,2k,4k",
    causal: Annotated[bool, typer.Option("--causal", help="The causal forms.")] = False,
    backward: Annotated[bool, typer.Option("--backward", help="The forward and the backward pass.")] = False,
    dim: Annotated[int, typer.Option(help="Width of the layer.")] = 512,
    num_heads: Annotated[int, typer.Option(help="Heads.")] = 8,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and inputs.")] = "float32",
    device: Annotated[str, typer.Option(help="What to compute on, such as cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    rounds: Annotated[int, typer.Option(help="Turns of each mechanism at each length.")] = 5,
    limit: Annotated[
        float, typer.Option(help="Seconds to build a layer and call it once; those who need more are left out.")
    ] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results. [default: a new regard-bench, regard-bench-2, ...]")
    ] = None,
) -> None:
    """Time and memory of the mechanisms against dense attention, at growing lengths, in turns."""
    with plain_errors():
        from regard.cli.benchmark import print_bench

        given: dict[str, Any] = {
            "mechanisms": tuple(names or ()),
            "causal": causal,
            "backward": backward,
            "dim": dim,
            "num_heads": num_heads,
            "batch": batch,
            "dtype": dtype,
            "device": device,
            "threads": threads,
            "rounds": rounds,
            "limit": limit,
        }
        interrupted = print_bench(given, lengths=lengths, out=out)
    if interrupted:
        raise typer.Exit(130)


@app.command()
def heads(
    model: Annotated[
        str,
        typer.Argument(
            help="The folder of an entrant (regard-race/entrants/full), of a Hugging Face model, or PATH.py:function, "
            "which returns (model, tokenizer)."
        ),
    ],
    data: Annotated[Path, typer.Argument(help="Sentences: .conllu with trees, or a text with a sentence a line.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page. [default: a new regard-heads, regard-heads-2, ...]")
    ] = None,
    sentences: Annotated[int, typer.Option(help="How many are looked at, from the beginning.")] = 500,
    examples: Annotated[int, typer.Option(help="Of how many the maps are drawn.")] = 3,
    positional: Annotated[
        float, typer.Option(help="Positional: one offset takes at least this share of the words.")
    ] = 0.9,
    margin: Annotated[
        float, typer.Option(help="Syntactic: a relation is followed so much above its most frequent offset.")
    ] = 0.1,
    rare: Annotated[
        float | None,
        typer.Option(help="Of rare words: this share of the words looks at the rarest. [default: no such role]"),
    ] = None,
    relations: Annotated[
        str | None, typer.Option(help="Relations, with commas between. [default: nsubj,obj,dobj,amod,advmod]")
    ] = None,
    too_long: Annotated[
        Literal["refuse", "skip"], typer.Option(help="What becomes of sentences over the model's limit.")
    ] = "refuse",
    device: Annotated[str, typer.Option(help="What to compute on, such as cpu or cuda.")] = "cpu",
) -> None:
    """What each head of a model does: a page with its role, confidence, importance, gate and maps on real sentences."""
    with plain_errors():
        from regard.cli.heads import print_heads

        print_heads(
            model,
            data,
            out=out,
            sentences=sentences,
            examples=examples,
            positional=positional,
            margin=margin,
            rare=rare,
            relations=relations,
            too_long=too_long,
            device=device,
        )


for command in (recommend, explore, transcribe, compose, fold):
    app.command()(command)
