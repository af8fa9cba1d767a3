"""Jukebox's VQ-VAE by its authors: openai/jukebox's VQVAE, Bottleneck and BottleneckBlock, with every option.

A case is one of training where it says so ("train", "update_k") or where draws were recorded; draws are taken in the
order of their numbers, as their code makes them: noise where a batch has fewer vectors than codes, then a permutation.
Without "restore_k" their codebooks begin with the first batch. ``checkpoint_res`` changes no number.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, renamed
from regard.models.sound_blocks import Residual
from regard.models.sound_loss import ALONE, Bandwidth, Resolution, SoundLoss, spectral_distance
from regard.models.vqvae import VQVAE
from regard.ops.codebook import Codebook, Draw, restored_state
from regard.registry import UnsupportedError

BLOCK_RULES = {
    r"\.blocks\.(\d+)\.model\.1\.": r".blocks.\1.dilated.",
    r"\.blocks\.(\d+)\.model\.3\.": r".blocks.\1.mix.",
    r"\.model\.(\d+)\.model\.1\.": r".blocks.\1.dilated.",
    r"\.model\.(\d+)\.model\.3\.": r".blocks.\1.mix.",
}
"""Of a residual stack, with and without their ``checkpoint_res``, which renames it."""

ENCODER_RULES = BLOCK_RULES | {
    r"\.model\.(\d+)\.(weight|bias)$": r".leave.\2",
    r"\.model\.(\d+)\.([01])\.": r".steps.\1.\2.",
}


def upsampler_name(name: str) -> str:
    """From DecoderConvBock's names to those of :class:`regard.models.sound_blocks.Upsampler`; prefixes stay.

    Example:
        >>> upsampler_name("cond.model.2.0.model.1.model.3.bias"), upsampler_name("cond.model.0.bias")
        ('cond.steps.1.0.blocks.1.mix.bias', 'cond.enter.bias')
    """
    for pattern, replacement in BLOCK_RULES.items():
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"\.model\.0\.(weight|bias)$", r".enter.\1", name)
    return re.sub(r"\.model\.(\d+)\.([01])\.", lambda found: f".steps.{int(found[1]) - 1}.{found[2]}.", name)


def residual(config: Mapping[str, Any]) -> Residual:
    """Their options of a residual stack as ours."""
    return Residual(
        config["width"],
        config["depth"],
        config.get("m_conv", 1.0),
        config.get("dilation_growth_rate", 1),
        config.get("dilation_cycle"),
        bool(config.get("res_scale", False)),
        bool(config.get("zero_out", False)),
    )


class _Judged(VQVAE):
    """With the loss that it is trained by."""

    def __init__(self, sound_loss: SoundLoss, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.sound_loss = sound_loss


class _Books(nn.Module):
    """The codebooks alone."""

    def __init__(self, levels: int, **arguments: Any) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(Codebook(**arguments) for _ in range(levels))


_OPTIONS = """input_shape levels downs_t strides_t emb_width l_bins mu commit spectral multispectral multipliers
    use_bottleneck hps loss_fn width depth m_conv dilation_growth_rate dilation_cycle zero_out res_scale
    reverse_decoder_dilation checkpoint_res"""


def _loss(config: Mapping[str, Any], hps: Mapping[str, Any]) -> SoundLoss:
    name = config.get("loss_fn", "l1")
    weights = {"l1": (1, 0, 0), "l2": (0, 1, 0), "linf": (0, 0, 1)}
    if name == "lmix":
        mixed = [float(hps.get(f"lmix_{part}") or 0.0) for part in ("l1", "l2", "linf")]
    elif name in weights:
        mixed = [float(weight) for weight in weights[name]]
    else:
        raise UnsupportedError(f"loss_fn={name!r}: theirs are l1, l2, linf and lmix")
    sizes = (hps[f"multispec_loss_{what}"] for what in ("n_fft", "hop_length", "window_size"))
    return SoundLoss(
        *mixed,
        peaks=hps.get("linf_k", 2048),
        spectral=config["spectral"],
        multispectral=config["multispectral"],
        relative=not hps.get("use_nonrelative_specloss", True),
        bandwidth=Bandwidth(**{name: hps["bandwidth"][name] for name in ("l1", "l2", "spec")}),
        several=tuple(Resolution(*numbers) for numbers in zip(*sizes, strict=True)),
    )


def _arguments(config: Config) -> dict[str, Any]:
    if unknown := config.keys() - set(_OPTIONS.split()):
        raise UnsupportedError(f"jukebox's VQVAE has no option {', '.join(sorted(unknown))}")
    levels = config["levels"]
    if len(config["downs_t"]) < levels or len(config["strides_t"]) < levels:
        raise UnsupportedError(f"{levels} levels need as many downs_t and strides_t")
    return {
        "sound_loss": _loss(config, config["hps"]),
        "downs": config["downs_t"][:levels],
        "strides": config["strides_t"][:levels],
        "residual": residual(config),
        "channels": config["input_shape"][-1],
        "multipliers": config.get("multipliers"),
        "codes": config["l_bins"],
        "code_width": config["emb_width"],
        "decay": config["mu"],
        "commit": config["commit"],
        "reverse": bool(config.get("reverse_decoder_dilation", False)),
        "quantise": config.get("use_bottleneck", True),
    }


def _book(name: str, table: Tensor) -> State:
    """Buffers of a codebook that was saved without its averages; copies, for training writes into them."""
    state = restored_state(table.clone())
    parts = dict(zip(("table", "sums", "counts"), state, strict=True))
    return {f"{name}{part}": t for part, t in parts.items()} | {f"{name}started": torch.ones_like(table[0, 0]).bool()}


def _weights(state: State) -> State:
    """Their decoders count levels from below, ours from the codes on."""
    levels = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("encoders."))
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if level := re.fullmatch(r"bottleneck\.level_blocks\.(\d+)\.k", name):
            found |= _book(f"codebooks.{level[1]}.", tensor)
            continue
        part, number, *_ = name.split(".")
        if int(number) >= levels:
            raise UnsupportedError(f"{name} belongs to no level of the encoders")
        if part == "encoders":
            ours = re.sub(r"\.level_blocks\.", ".", name)
            found |= renamed({ours: tensor}, ENCODER_RULES)
        elif re.fullmatch(r"decoders\.\d+\.out\.\w+", name):
            found[name.replace("decoders.", "leave.").replace(".out.", ".")] = tensor
        else:
            _, _, _, block, rest = name.split(".", 4)
            found[upsampler_name(f"decoders.{number}.{int(number) - int(block)}.{rest}")] = tensor
    return found


class _Draws:
    """The draws of a recorded case, one after the other."""

    def __init__(self, inputs: Inputs) -> None:
        named = [(int(found[1]), t) for name, t in inputs.items() if (found := re.fullmatch(r"draw(\d+)_?\w*", name))]
        self.left: Iterator[Tensor] = iter([tensor for _, tensor in sorted(named, key=lambda pair: pair[0])])
        self.some = bool(named)

    def next(self, book: Codebook, vectors: int) -> Draw:
        """Of one step."""
        codes = len(book.table)
        noise = next(self.left) if vectors < codes else None
        return Draw(next(self.left).long(), noise)

    def both(self, book: Codebook, vectors: int) -> tuple[Draw | None, Draw]:
        """Of the first batch, where this is the first, and of the step."""
        return (None if book.started else self.next(book, vectors)), self.next(book, vectors)


def _begin(books: nn.ModuleList | list[Codebook], call: Call, draws: _Draws) -> bool:
    """Whether this is training; then the codebooks get the averages that their code would have given them."""
    training = bool(call.get("update_k", call.get("train", call.get("training", draws.some))))
    for book in books if training else ():
        assert isinstance(book, Codebook)
        restore = call.get("restore_k")
        if restore is None:
            book.started.fill_(False)
            continue
        restore = restore if isinstance(restore, Mapping) else {}
        book.threshold = restore.get("threshold", 1.0)
        book.put(restored_state(book.table.clone(), restore.get("num_tokens")))
    return training


_FIGURES = {"fit": "fit", "deviation": "pn", "entropy": "entropy", "used": "used_curr", "alive": "usage", "moved": "dk"}


def _call(model: _Judged, inputs: Inputs, call: Call) -> Outputs:
    x, draws = inputs["x"], _Draws(inputs)
    books = [book for book in model.codebooks if isinstance(book, Codebook)]
    training = _begin(books, call, draws)
    model.train(training)
    counts = [len(x) * (x.shape[1] // hop) for hop in model.hops]
    drawn = [draws.both(book, n) for book, n in zip(books, counts, strict=False)] if training and draws.some else None
    y, told = model(x, draws=drawn, return_aux=True)
    judge = model.sound_loss
    parts = judge(x, y, every=True)
    lowest = judge(x, y[:, :1], every=True)
    weighed = {"l1": judge.l1, "l2": judge.l2, "linf": judge.linf}
    relative = spectral_distance(x.mean(-1), y[:, 0].mean(-1), ALONE, relative=True)
    outputs = {
        "out": parts["loss"] + told["loss/commit"],
        "x_out": y[:, 0],
        "recons_loss": sum((weight * parts[name] for name, weight in weighed.items() if weight), x.new_zeros(())),
        "spectral_loss": parts["spectral"],
        "multispectral_loss": parts["multispectral"],
        "spectral_convergence": relative.mean(),
        "commit_loss": told["loss/commit"] / model.commit if model.commit else x.new_zeros(()),
        **{f"{name}_loss": lowest[name] for name in weighed},
    }
    if training:
        for ours, theirs in _FIGURES.items():
            values = [told[f"metric/{level}/{ours}"] for level in range(len(books))]
            if values:
                outputs[theirs] = torch.stack(values).mean()
        return outputs
    codes = model.encode(x)
    if books:
        outputs |= {f"z{level}": z for level, z in enumerate(codes)}
    return outputs | {"decode_top": model.decode(codes[-1], model.levels - 1)}


class _WithLoss(torch.autograd.Function):
    """A tensor whose gradient brings along that of a loss, with weight 1: their gradients are of such a sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, loss: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0], grad_outputs[0].new_ones(())


COMMIT = 0.5
"""Weight of the commitment in the recorded gradients of a codebook alone."""


def _quantise(book: Codebook, x: Tensor, draws: _Draws, training: bool) -> tuple[Outputs, Tensor]:
    """One step on (B, D, T), or on twice as many channels, whose halves are added up.

    Returns:
        The outputs by name, and the straight-through tensor whose gradient brings the commitment along.
    """
    width = book.table.shape[1]
    halves = x.mT.split(width, -1)
    summed = halves[0] if len(halves) == 1 else halves[0] + halves[1]
    first, restart = draws.both(book, summed.shape[0] * summed.shape[1]) if training and draws.some else (None, None)
    book.train(training)
    found = book(summed, first=first, restart=restart)
    figures = {_FIGURES[name]: value for name, value in found.figures.items()}
    figures["pn"] = sum((half.std(correction=0) for half in halves), x.new_zeros(())).detach()
    outputs = {"codes": found.codes, "quantised": found.vectors.mT, "commit_loss": found.commit, **figures}
    if training:
        after = {"codebook_after": book.table, "k_sum_after": book.sums, "k_elem_after": book.counts}
        outputs |= {name: tensor.clone() for name, tensor in after.items()}
    return outputs, _WithLoss.apply(found.vectors.mT, COMMIT * found.commit)  # pyright: ignore[reportReturnType]


def _given(inputs: Inputs) -> list[Tensor]:
    """x, or x0, x1, ..."""
    return [
        inputs[name] for name in sorted(inputs, key=lambda name: (len(name), name)) if re.fullmatch(r"xs?\d*", name)
    ]


def _call_book(book: Codebook, inputs: Inputs, call: Call) -> Outputs:
    draws = _Draws(inputs)
    training = _begin([book], call, draws)
    outputs: Outputs = {}
    for number, x in enumerate(_given(inputs)):
        told, through = _quantise(book, x, draws, training)
        outputs |= {f"{number}/{name}": value for name, value in told.items()}
        outputs.setdefault("out", through)
    return outputs


def _call_books(books: _Books, inputs: Inputs, call: Call) -> Outputs:
    draws = _Draws(inputs)
    training = _begin(books.codebooks, call, draws)
    outputs: Outputs = {}
    for level, x in enumerate(_given(inputs)):
        book = books.codebooks[level]
        assert isinstance(book, Codebook)
        told, through = _quantise(book, x, draws, training)
        outputs |= {f"{level}/{name}": value for name, value in told.items()}
        outputs.setdefault("out", through if training else through.detach())
    return outputs


def _arguments_book(config: Config) -> dict[str, Any]:
    return {"codes": config["k_bins"], "width": config["emb_width"], "decay": config["mu"]}


def _arguments_books(config: Config) -> dict[str, Any]:
    sizes = {"codes": config["l_bins"], "width": config["emb_width"], "decay": config["mu"]}
    return sizes | {"levels": config["levels"]}


def _weights_book(state: State) -> State:
    return _book("", state["k"])


def _weights_books(state: State) -> State:
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found |= _book(f"codebooks.{name.split('.')[1]}.", tensor)
    return found


IMPORTERS = {
    "openai/jukebox:jukebox/vqvae/vqvae.py:VQVAE": Importer(_Judged, _arguments, _call, _weights),
    "openai/jukebox:jukebox/vqvae/bottleneck.py:BottleneckBlock": Importer(
        Codebook, _arguments_book, _call_book, _weights_book
    ),
    "openai/jukebox:jukebox/vqvae/bottleneck.py:Bottleneck": Importer(
        _Books, _arguments_books, _call_books, _weights_books
    ),
}
