"""Commands that help to choose an attention: by measuring, and by looking."""

from typing import Annotated, Any, Literal

import typer

from regard.cli.errors import plain_errors

Dtype = Literal["float32", "float64", "bfloat16", "float16"]


def recommend(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="NAME or NAME:option=value,... each; without them all that could win."),
    ] = None,
    length: Annotated[str, typer.Option(help="Tokens, such as 8k, or the sides of a map, such as 64x48.")] = "4k",
    context: Annotated[str | None, typer.Option(help="Tokens of another sequence that is attended to.")] = None,
    causal: Annotated[bool, typer.Option("--causal", help="Only those that never look ahead.")] = False,
    backward: Annotated[bool, typer.Option(help="The backward pass too, or the forward pass alone.")] = True,
    streaming: Annotated[bool, typer.Option("--streaming", help="Only those that can go on token by token.")] = False,
    memory: Annotated[str | None, typer.Option(help="What a call may take, such as 4GB.")] = None,
    seconds: Annotated[float | None, typer.Option(help="What a call may take.")] = None,
    dim: Annotated[int, typer.Option(help="Width of the layer.")] = 512,
    num_heads: Annotated[int, typer.Option(help="Heads.")] = 8,
    batch: Annotated[int, typer.Option(help="Sequences or maps at once.")] = 1,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and inputs.")] = "float32",
    device: Annotated[str, typer.Option(help="What to compute on, such as cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of torch. [default: as many as torch takes]")] = None,
    budget: Annotated[float, typer.Option(help="Seconds of measuring.")] = 60.0,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure even if the answer is known.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """The fastest mechanism for these shapes on this machine, measured and remembered; exit code 1 if none fits."""
    with plain_errors():
        from regard.cli.recommend import print_recommendation

        given: dict[str, Any] = {
            "mechanisms": names or (),
            "causal": causal,
            "backward": backward,
            "streaming": streaming,
            "max_memory": memory,
            "max_seconds": seconds,
            "dim": dim,
            "num_heads": num_heads,
            "batch": batch,
            "dtype": dtype,
            "device": device,
            "threads": threads,
            "budget": budget,
            "refresh": refresh,
        }
        code = print_recommendation(given, length=length, context=context, as_json=as_json)
    if code:
        raise typer.Exit(code)


def explore(
    port: Annotated[int, typer.Option(help="Where the page is served; 0 takes a free one.")] = 7860,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    budget: Annotated[str, typer.Option(help="Time to train a small model where there is none yet.")] = "15s",
) -> None:
    """A page to look at mechanisms: pattern, cost, and who looks where in your own text, image or sequence."""
    with plain_errors():
        from regard.cli.explore import run_explorer

        run_explorer(port=port, host=host, open_=open_, budget=budget)
