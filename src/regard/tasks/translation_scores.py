"""BLEU and chrF by sacreBLEU, each with the signature that says how it was counted.

Post 2018, arXiv:1804.08771: scores of different tokenisations differ by more than most papers claim, so a number
without its signature is worth nothing.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from regard.tasks.documents import InputError

Tokenize = Literal["13a", "intl", "char", "none", "zh", "ja-mecab", "ko-mecab"]


class Scored(NamedTuple):
    """A score from 0 to 100 of a whole corpus, and how it was counted."""

    value: float
    signature: str


def bleu(
    found: Sequence[str], references: Sequence[str], *, lowercase: bool = False, tokenize: Tokenize = "13a"
) -> Scored:
    """BLEU (Papineni et al. 2002): n-grams of words up to four, with a penalty for being short.

    Args:
        found: translations.
        references: the true ones, one each.
        lowercase: compare small letters; the published numbers on Multi30k do.
        tokenize: of sacreBLEU; "none" for text that is in tokens already.

    Raises:
        InputError: unequal numbers, none, or the package ``sacrebleu`` is missing.

    Example:
        >>> bleu(["the cat sat on the mat"], ["the cat sat on the mat"]).value
        100.0
    """
    metric = _metrics().BLEU(lowercase=lowercase, tokenize=tokenize)
    return _scored(metric, found, references)


def chrf(found: Sequence[str], references: Sequence[str]) -> Scored:
    """chrF2 (Popović 2015): n-grams of characters up to six, recall twice as heavy; fair to long compounds.

    Args, Raises: as of :func:`bleu`.

    Example:
        >>> 0 < chrf(["die Datei"], ["die Dateien"]).value < 100
        True
    """
    return _scored(_metrics().CHRF(), found, references)


def sentence_chrf(found: str, reference: str) -> float:
    """chrF2 of one sentence.

    Example:
        >>> sentence_chrf("Datei", "Datei")
        100.0
    """
    return round(_metrics().CHRF().sentence_score(found, [reference]).score, 6)


def _metrics() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise InputError("BLEU and chrF need the package sacrebleu: pip install 'regard[race]'") from error
    return metrics


def _scored(metric: Any, found: Sequence[str], references: Sequence[str]) -> Scored:
    if len(found) != len(references) or not found:
        raise InputError(f"{len(found):,} translations of {len(references):,} sentences: one each, and one at least")
    value = metric.corpus_score(list(found), [list(references)]).score
    return Scored(round(float(value), 6), str(metric.get_signature()))
