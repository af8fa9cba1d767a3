"""Tunes as sequences of characters: music for a prior alone, without sound; quality is held-out bits per character.

By default the fiddle tunes of O'Neill (1850 of Ireland) and Aird (Scotland, 1778 and later) and the melodies of Bach's
chorales, all from the corpus of ``music21``; or any ``.abc`` files and scores. Whole tunes are held out, by the sha256
of their text, so that a tune that stands in two books under two names is on one side of the split.
"""

import lzma
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from regard.models.code_prior import CodePrior
from regard.models.jukebox_sampling import sample_codes
from regard.models.jukebox_transformer import JukeboxTransformer
from regard.models.language_models import NGram
from regard.tasks.abc_tunes import music21_corpus, read_tunes
from regard.tasks.documents import Document, InputError, drop_duplicates
from regard.tasks.music_xml import read_melodies
from regard.tasks.split import Split, split_by
from regard.tasks.task import Batch, Metric, Part, Task, step_generator
from regard.tasks.tune_faults import END

SIGNS = "\n" + "".join(map(chr, range(32, 127)))
"""The characters; token n is the nth of them."""

JUDGED = 4096
"""Characters in a batch when judging."""


def corpus(folder: Path | None = None) -> list[Document]:
    """The tunes of O'Neill and Aird and the melodies of Bach's chorales, from a folder like music21's corpus.

    Raises:
        InputError: the package is not installed, or the folder holds something else.
    """
    root = music21_corpus() if folder is None else folder
    tunes = read_tunes([root / "oneills1850", root / "airdsAirs"])
    return drop_duplicates([*tunes, *read_melodies([root / "bach"])])


def split_tunes(tunes: Sequence[Document]) -> Split:
    """A tenth of the tunes for the test, a tenth for the validation part, by the first byte of their sha256.

    Raises:
        InputError: so few tunes that a part is empty.
    """

    def part(tune: Document) -> str:
        byte = int(tune.digest[:2], 16)
        return "test" if byte < 26 else "validation" if byte < 52 else "train"

    split = split_by(tunes, part, "by tune: test where the first byte of its sha256 is below 26, validation below 52")
    if not (split.train and split.validation and split.test):
        raise InputError(f"{len(tunes)} tunes are too few to hold some out: give 50 at least")
    return split


def tokens_of(text: str) -> Int[Tensor, " N"]:
    """Numbers of the characters.

    Example:
        >>> tokens_of("K:G")
        tensor([44, 27, 40])
    """
    return torch.tensor([0 if sign == "\n" else ord(sign) - 31 for sign in text], dtype=torch.long)


def text_of(tokens: Sequence[int]) -> str:
    """The characters of the numbers."""
    return "".join(SIGNS[token] for token in tokens)


class Tunes(Task):
    """Predict each character of a tune from the ones before it.

    A training row holds random tunes, the first from its beginning, until it is full; a held-out row is one tune. Tunes
    of more than ``length`` characters are cut.

    Args:
        split: of the tunes.
        length: N, characters in a row.
        batch: rows in a step.
        seed: of what is drawn.
    """

    metric = Metric("bits per character", lower_is_better=True, digits=3, items="tunes")
    unit = "characters"
    loss_unit, loss_scale = "bits per character", 1 / math.log(2)
    vocab_size = num_classes = len(SIGNS)

    def __init__(self, split: Split, *, length: int = 384, batch: int = 16, seed: int = 0) -> None:
        self.split, self.length, self.rows, self.seed = split, length, batch, seed
        self.pieces = _pieces(split.train, length)

    def model(self, dim: int, depth: int, num_heads: int, mechanism: str = "jukebox", **options: object) -> nn.Module:
        """A prior over characters, of Jukebox's transformer; ``options`` are the latter's.

        Raises:
            InputError: another mechanism: this task is for priors.
        """
        if mechanism != "jukebox":
            raise InputError(
                f"tunes are written by a Jukebox prior, whose layers are of several kinds, not {mechanism}"
            )
        transformer = JukeboxTransformer(dim, depth, num_heads, max_length=self.length, **options)  # pyright: ignore[reportArgumentType]
        return CodePrior(self.vocab_size, self.length, transformer)

    def batch(self, step: int) -> Batch:
        """Random rows, by a generator that depends on seed and step alone."""
        generator = step_generator(self.seed, step)
        tokens = torch.stack([self._row(generator) for _ in range(self.rows)])
        return Batch(tokens, tokens)

    def _row(self, generator: Generator) -> Tensor:
        pieces, filled = list[Tensor](), 0
        while filled < self.length:
            pieces.append(self.pieces[int(torch.randint(len(self.pieces), (1,), generator=generator))])
            filled += len(pieces[-1])
        return torch.cat(pieces)[: self.length]

    def held_out(self, part: Part) -> Iterator[Batch]:
        """Tunes of about equal length side by side, each in a row of its own."""
        pieces = [(tune.name, piece) for tune in getattr(self.split, part) for piece in _pieces([tune], self.length)]
        pieces.sort(key=lambda pair: -len(pair[1]))
        while pieces:
            rows = max(1, JUDGED // len(pieces[0][1]))
            chosen, pieces = pieces[:rows], pieces[rows:]
            tokens = nn.utils.rnn.pad_sequence([piece for _, piece in chosen], batch_first=True)
            lengths = torch.tensor([len(piece) for _, piece in chosen])
            real = torch.arange(tokens.shape[1]) < lengths[:, None]
            names = tuple(name for name, _ in chosen)
            yield Batch(tokens, tokens, key_mask=real, units=names, amounts=tuple(lengths.double().tolist()))

    def loss(self, prediction: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross entropy of a character."""
        nats = F.cross_entropy(prediction.transpose(1, 2).float(), batch.targets, reduction="none")
        return nats.mean() if batch.key_mask is None else nats[batch.key_mask].mean()

    def scores(self, prediction: Tensor, batch: Batch) -> Float[Tensor, " B"]:
        """Bits that each row would take in an ideal code."""
        nats = F.cross_entropy(prediction.transpose(1, 2).float(), batch.targets, reduction="none")
        nats = nats if batch.key_mask is None else nats.masked_fill(~batch.key_mask, 0.0)
        return nats.double().sum(-1) / math.log(2)

    def ngram(self, order: int) -> NGram:
        """Counted on the training part, with Witten-Bell smoothing."""
        texts = [tokens_of(tune.data.decode("ascii")).tolist() for tune in self.split.train]
        return NGram.fit(texts, self.vocab_size, order, blank=None)

    def baselines(self) -> dict[str, float]:
        """Bits per character of the test part: of models without attention, and of xz behind the training part."""
        found = {"uniform": math.log2(self.vocab_size)}
        for order, name in ((1, "unigram"), (2, "bigram"), (3, "trigram"), (6, "6-gram")):
            found[name] = _ngram_bits(self.ngram(order), self.split.test)
        train, test = (b"".join(tune.data for tune in part) for part in (self.split.train, self.split.test))
        return found | {"xz": 8 * (_compressed(train + test) - _compressed(train)) / len(test)}


def _pieces(tunes: Sequence[Document], length: int) -> list[Tensor]:
    return [piece for tune in tunes for piece in tokens_of(tune.data.decode("ascii")).split(length)]


def _ngram_bits(model: NGram, tunes: Sequence[Document]) -> float:
    """Every character of a tune after all before it, also where the tune is longer than a row."""
    bits = count = 0.0
    for tune in tunes:
        tokens = tokens_of(tune.data.decode("ascii"))
        prefixes = [tuple(tokens[max(0, place - model.order + 1) : place].tolist()) for place in range(len(tokens))]
        nats = model.score(prefixes).gather(1, tokens[:, None])
        bits, count = bits - float(nats.sum()) / math.log(2), count + len(tokens)
    return bits / count


def _compressed(data: bytes) -> int:
    return len(lzma.compress(data, preset=9))


def compose_tunes(
    model: CodePrior, count: int, *, temperature: float = 1.0, top_p: float | None = None, generator: Generator
) -> list[str]:
    """Tunes that a prior writes, each up to its end, or to the end of a row."""
    model.eval()
    codes = sample_codes(
        model, count, model.max_length, temperature=temperature, top_p=top_p, generator=generator
    ).tolist()
    return [_first_tune(text_of(row)) for row in codes]


def ngram_tunes(model: NGram, count: int, length: int, *, generator: Generator) -> list[str]:
    """Tunes that an n-gram writes."""
    tunes = list[str]()
    for _ in range(count):
        tokens = list[int]()
        while len(tokens) < length and tokens[-2:] != [0, 0]:
            weights = model.score([tuple(tokens[-model.order :])])[0, :-1].exp()
            tokens.append(int(torch.multinomial(weights, 1, generator=generator)))
        tunes.append(_first_tune(text_of(tokens)))
    return tunes


def _first_tune(text: str) -> str:
    return text.split(END)[0] + END if END in text else text
