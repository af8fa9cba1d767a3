"""What a recogniser heard, and when, as a picture: the sound, CTC's reading of it, and where its decoder looked."""

import io
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, LONGEST, ROW, SIGNS = 0.9, 40.0, 0.11, 14
"""Inches to a second, the most inches, inches to a label of the decoder, and signs to an inch of the title."""

MARK, TEXT = "#a01428", "#282828"


class SaidWord(NamedTuple):
    """A word, from when to when in seconds, and how certain it is (0 to 1)."""

    text: str
    start: float
    end: float
    confidence: float


def speech_picture(
    frames: Float[Tensor, "T M"],
    posteriors: Float[Tensor, "S V"],
    signs: Sequence[str],
    words: Sequence[SaidWord],
    *,
    frame_seconds: float,
    state_seconds: float,
    attention: Float[Tensor, "L S"] | None = None,
    spelled: Sequence[str] = (),
    title: str = "",
    form: str = "png",
) -> bytes:
    """Two or three panels above each other, on one axis of time.

    Args:
        frames: log-mels.
        posteriors: probabilities of labels at each state, the blank first.
        signs: what the labels are written as, the blank too; only those that ever matter are drawn.
        words: what was said, as boxes over the sound, the less certain the paler.
        frame_seconds, state_seconds: how long a frame and a state last.
        attention: the decoder's weights; None: there is no decoder.
        spelled: the labels at which it looked.
        title: above everything.
        form: "png" or "svg".

    Returns:
        The bytes of the file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture is drawn with matplotlib: pip install 'regard[race]'") from error
    seconds = len(frames) * frame_seconds
    read = len(posteriors) * state_seconds
    heights = [2.0, 2.4, *([max(1.5, ROW * len(attention))] if attention is not None else [])]
    width = min(LONGEST, max(6.0, 1.5 + WIDTH * seconds))
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    panels: list[Axes] = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))  # pyright: ignore
    lines = [line for text in title.splitlines() for line in wrap(text, round(SIGNS * width))]
    figure.suptitle("\n".join(lines), fontsize=9, color=TEXT)
    _sound(panels[0], frames, words, seconds)
    _reading(panels[1], posteriors, signs, read)
    if attention is not None:
        _looking(panels[2], attention, spelled, read)
    panels[-1].set_xlabel("seconds")
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=130)
    return file.getvalue()


def _sound(axes: "Axes", frames: Tensor, words: Sequence[SaidWord], seconds: float) -> None:
    """Loud dark; the words above."""
    mels = frames.shape[1]
    cells = frames.T.float().cpu().numpy()
    axes.imshow(cells, aspect="auto", origin="lower", cmap="Greys", extent=(0, seconds, 0, mels), vmin=-2, vmax=3)
    axes.set(ylabel="mel", ylim=(0, 1.32 * mels), yticks=[0, mels], xlim=(0, seconds))
    for number, word in enumerate(words):
        faint = 0.25 + 0.75 * word.confidence
        for place in (word.start, word.end):
            axes.plot([place, place], [0, 1.05 * mels], color=MARK, linewidth=0.7, alpha=faint)
        height = (1.08 if number % 2 else 1.2) * mels  # short words that stand side by side do not cover each other
        middle = (word.start + word.end) / 2
        axes.text(middle, height, word.text, ha="center", va="center", fontsize=8, color=MARK, alpha=faint)


def _reading(axes: "Axes", posteriors: Tensor, signs: Sequence[str], seconds: float) -> None:
    """The labels that are likely at some time, in the order in which that happens."""
    shown = posteriors[:, 1:].float().cpu()
    strong = [label for label in range(shown.shape[1]) if float(shown[:, label].max()) > 0.2] or [0]
    strong.sort(key=lambda label: (int(shown[:, label].argmax()), label))
    cells = shown[:, strong].T.numpy()
    axes.imshow(cells, aspect="auto", cmap="Reds", extent=(0, seconds, len(strong), 0), vmin=0, vmax=1)
    _letters(axes, [signs[1 + label] for label in strong])
    axes.set_ylabel("CTC")


def _looking(axes: "Axes", attention: Tensor, spelled: Sequence[str], seconds: float) -> None:
    """A row for each label that was said."""
    cells = attention / attention.amax(-1, keepdim=True).clamp(min=1e-9)
    rows = len(attention)
    axes.imshow(cells.float().cpu().numpy(), aspect="auto", cmap="Blues", extent=(0, seconds, rows, 0), vmin=0, vmax=1)
    _letters(axes, list(spelled))
    axes.set_ylabel("decoder")


def _letters(axes: "Axes", signs: Sequence[str]) -> None:
    places = [number + 0.5 for number in range(len(signs))]
    size = max(4.0, min(8.0, 150 / max(1, len(signs))))
    axes.set_yticks(places, ["␣" if sign == " " else sign for sign in signs], fontsize=size)
    axes.tick_params(axis="y", length=0)
