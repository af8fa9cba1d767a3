"""What each head of a model does, on real sentences: the roles of Voita et al. 2019.

arXiv:1905.09418, section 5; the numbers are those of :mod:`regard.ops.head_roles`. A head is

- positional, if one offset takes the largest weight of at least 90 % of the words;
- syntactic, if it follows a relation at least 10 points more often than the relation's most frequent offset would;
- of rare words, only if a threshold is given: the paper has none, and reports the two shares.

Everything is counted between words, also where the tokenizer cuts them (:mod:`regard.inspect.sentences`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from torch import Tensor, nn

from regard.inspect.head_gates import HeadGates
from regard.inspect.head_importance import head_importance
from regard.inspect.head_measure import Measure, Numbers
from regard.inspect.head_reading import Run, Text, batches, look, tokenized
from regard.inspect.head_reading import examples as pick_examples
from regard.inspect.head_report import Head, HeadsReport
from regard.inspect.sentences import Sentence, Tokenize, as_tokenize
from regard.ops.head_roles import positional, syntactic
from regard.registry import UnsupportedError

__all__ = ["heads"]

RELATIONS = ("nsubj", "obj", "dobj", "amod", "advmod")
"""Those of the paper; "dobj" is what treebanks of before Universal Dependencies 2 call an "obj"."""

OFFSETS = (-3, -2, -1, 0, 1, 2, 3)

Loss = Callable[[nn.Module, Tensor], Tensor]


def heads(
    model: nn.Module,
    data: Iterable[Sentence | str],
    tokenizer: Tokenize | Any,
    *,
    run: Run | None = None,
    loss: Loss | None = None,
    gates: Mapping[str, Tensor] | None = None,
    positional_share: float = 0.9,
    offsets: Sequence[int] = OFFSETS,
    syntactic_margin: float = 0.1,
    relations: Sequence[str] = RELATIONS,
    common_words: int = 500,
    rare_share: float | None = None,
    counts: Mapping[str, int] | None = None,
    too_long: Literal["refuse", "skip"] = "refuse",
    max_length: int | None = None,
    examples: int = 3,
    batch: int = 16,
) -> HeadsReport:
    """Look at every head of a model and say what it does; see the head of this file.

    Args:
        model: of ours, of Hugging Face, or any in which :func:`regard.inspect.attention_maps` finds something.
        data: sentences; a text is cut into words at its spaces. Relations are counted where there are trees.
        tokenizer: of transformers or tokenizers, or a function words -> (ids, the word of each token or -1).
        run: (model, tokens (B, N)) -> anything, how the model is run; ``model(tokens)`` by default. For the encoder of
            a translator: ``lambda model, tokens: model.encode(tokens)``.
        loss: (model, tokens) -> the loss, for the importance of each head; without one it is not measured.
        gates: the gate of each head by layer; by default those that the model has (:func:`regard.inspect.gate_heads`).
        positional_share: what one offset must take.
        offsets: the places that are tried, relative to the word that looks.
        syntactic_margin: what a relation's accuracy must have above its baseline.
        relations: that are counted; what follows a colon ("nsubj:pass") does not matter.
        common_words: sentences whose rarest word is among so many most frequent ones are not counted for rare words.
        rare_share: share of words that must look at the rarest word for that role; None: nobody is given it.
        counts: how often each word occurs, to tell rare ones; by default in the data.
        too_long: whether sentences over the model's limit are an error, or are left out and counted in the remarks.
        max_length: the limit in tokens, by default the model's own.
        examples: of how many sentences the maps are kept; those of 5 to 16 words come first.
        batch: sentences at once. They are of equal length in tokens, so no mask is needed.

    Returns:
        The report; ``print(report.table())``.

    Raises:
        ValueError: no sentences, a sentence over the limit, a threshold that is no share.
        UnsupportedError: a model without attention within one sequence.

    Example:
        >>> from regard.inspect.sentences import bytes_of_words
        >>> from regard.models import TransformerLM
        >>> report = heads(TransformerLM(256, 16, 2, 2, 64), ["Every token weighs every other"], bytes_of_words)
        >>> len(report.heads), report.layers
        (4, ('blocks.0.attention', 'blocks.1.attention'))
    """
    for name, share in (("positional_share", positional_share), ("rare_share", rare_share)):
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{name}={share} is no share: it must lie above 0 and at most at 1")
    if not offsets:
        raise ValueError("offsets= is empty: name at least one relative place, such as -1")
    sentences = [Sentence(tuple(each.split())) if isinstance(each, str) else each for each in data]
    limit = _limit(model) if max_length is None else max_length
    texts, remarks = tokenized(sentences, as_tokenize(tokenizer), limit, too_long)
    chosen = pick_examples(texts, examples)
    seen = look(model, texts, batch, run or _run, chosen)
    order = [texts[number].sentence for number in seen.numbers]
    measure = Measure(order, seen.words, _ranks(sentences, counts), relations, offsets, common_words)
    importance, unknown = _importance(model, texts, batch, loss)
    gates = _gates(model) if gates is None else gates
    judge = _Judge(positional_share, syntactic_margin, rare_share)
    found = [
        judge(layer, measure(*tally.joined(measure.size)), _of_layer(importance, layer), _of_layer(gates, layer))
        for layer, tally in seen.tallies.items()
    ]
    told: dict[str, Any] = {
        "positional share": positional_share,
        "offsets": list(offsets),
        "syntactic margin": syntactic_margin,
        "relations": list(relations),
        "common words": common_words,
        "rare-word share": rare_share,
    }
    total = sum(len(sentence.words) for sentence in order)
    shown = [seen.examples[number] for number in chosen]
    told_remarks = (*remarks, *seen.elsewhere, *measure.remarks, *unknown)
    return HeadsReport(tuple(chain.from_iterable(found)), told, len(texts), total, told_remarks, shown)


@dataclass(frozen=True)
class _Judge:
    """Gives roles by thresholds."""

    positional_share: float
    syntactic_margin: float
    rare_share: float | None

    def __call__(
        self, layer: str, numbers: Numbers, importance: Sequence[float] | None, gates: Sequence[float] | None
    ) -> list[Head]:
        """The records of a layer's heads.

        Raises:
            ValueError: importances or gates of another number of heads.
        """
        for name, values in (("importances", importance), ("gates", gates)):
            if values is not None and len(values) != len(numbers.confidence):
                raise ValueError(f"{layer} has {len(numbers.confidence)} heads, but {len(values)} {name} were given")
        stays = positional(numbers.offset_shares, self.positional_share)
        follows = syntactic(numbers.accuracy, numbers.baseline, self.syntactic_margin)
        heads = list[Head]()
        for number in range(len(numbers.confidence)):
            arcs = numbers.arcs_of(number)
            syntax = tuple(arc for (place, arc) in arcs if follows[(*place, number)])
            share, at = numbers.offset_shares[number].max(-1)
            rarest, two = (None, None) if numbers.rare is None else numbers.rare[:, number].tolist()
            roles = [f"positional: {numbers.offsets[int(at)]:+d}"] if stays[number] else []
            roles += [f"syntactic: {arc}" for arc in sorted(syntax, key=lambda arc: -arc.gain)]
            seeks = self.rare_share is not None and rarest is not None and rarest >= self.rare_share
            roles += ["rare words"] if seeks else []
            heads.append(
                Head(
                    layer=layer,
                    number=number,
                    confidence=float(numbers.confidence[number]),
                    offset=numbers.offsets[int(at)],
                    offset_share=float(share),
                    best=max((arc for _, arc in arcs), key=lambda arc: arc.gain, default=None),
                    syntactic=syntax,
                    rarest=rarest,
                    two_rarest=two,
                    importance=None if importance is None else importance[number],
                    gate=None if gates is None else gates[number],
                    roles=tuple(roles),
                )
            )
        return heads


def _run(model: nn.Module, tokens: Tensor) -> Any:
    return model(tokens)


def _limit(model: nn.Module) -> int | None:
    """The most tokens that the model can read, as far as it says so."""
    for owner, name in ((model, "max_length"), (getattr(model, "config", None), "max_position_embeddings")):
        found = getattr(owner, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None


def _ranks(sentences: Sequence[Sentence], counts: Mapping[str, int] | None) -> dict[str, int]:
    """The rank of each word by its frequency, from 1."""
    found = Counter(counts if counts is not None else (word for each in sentences for word in each.words))
    return {word: rank for rank, (word, _) in enumerate(found.most_common(), start=1)}


def _importance(
    model: nn.Module, texts: Sequence[Text], size: int, loss: Loss | None
) -> tuple[Mapping[str, Tensor], list[str]]:
    """The importance of the heads by layer, and why there is none."""
    if loss is None:
        return {}, []
    longer = [text for text in texts if len(text.ids) > 1]  # a single token has no next one
    try:
        tokens = [each.ids for each in batches(longer, size, next(model.parameters()).device)]
        return head_importance(model, tokens, loss), []
    except UnsupportedError as error:
        return {}, [f"Importance was not measured: {error}."]


def _gates(model: nn.Module) -> Mapping[str, Tensor]:
    try:
        return HeadGates(model).gates()
    except ValueError:  # it has none
        return {}


def _of_layer(values: Mapping[str, Tensor], layer: str) -> list[float] | None:
    """The values of a layer; a path that names a part of it, or that it is a part of, means the same attention."""
    for path, found in values.items():
        if path == layer or path.startswith(f"{layer}.") or layer.startswith(f"{path}."):
            return found.tolist()
    return None
