"""Jukebox's priors: codes of one level, given labels, lyrics and the codes of the level above.

Dhariwal et al. 2020, arXiv:2005.00341, section 4. A prior of the top level is told artist, genres and time; an
upsampler is told the codes above it. Lyrics come in one of two ways:

- apart (:class:`LyricsEncoder`): layers of kind "encoder_decoder" attend to states of a small prior over the lyrics;
- in front ("single stream"): lyrics and codes are one sequence, codes counting from the size of the lyric vocabulary,
  and layers of kind "prime" attend to its beginning. Positions of lyrics are told nothing.

Loss in bits, for M lyric tokens and N codes: f lyrics M / (M + N) + codes N / (M + N), where f = 0.4.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from regard.models.code_prior import CodePrior, PriorMemory
from regard.models.jukebox_conditions import LENGTHS, LabelEmbedding, LyricsEncoder, UpperCodes


class Bits(NamedTuple):
    """Losses in bits: of everything, a code, and a lyric token (0 without lyrics)."""

    total: Float[Tensor, ""]
    codes: Float[Tensor, ""]
    lyrics: Float[Tensor, ""]


class _Told(NamedTuple):
    """What the prior over codes is given."""

    options: dict[str, Any]
    tokens: Tensor | None
    states: Tensor | None


class JukeboxPrior(nn.Module):
    """Logits (B, N, num_codes) of each code, given those before it and what is told beside them.

    Args:
        codes: the prior over codes; over lyrics and codes where these come in front. Built with ``labelled=True`` where
            there are labels.
        labels: artist, genres and time.
        upper: the codes of the level above.
        lyrics: the encoder of lyrics that come apart.
        lyric_tokens: M, how many tokens the rows of labels end with (also where nobody reads them).
        lyric_vocabulary: how many lyric tokens there are, where they come in front; else 0.
        copy_input: the first M codes take the place of the lyrics, in training.
        lyric_loss: f.
        hop: samples of sound that one code stands for, for offsets of windows.

    Raises:
        ValueError: parts that do not fit together.

    Example:
        >>> from regard.models.jukebox_transformer import JukeboxTransformer
        >>> prior = JukeboxPrior(CodePrior(11, 24, JukeboxTransformer(16, 3, 2, row_length=6)))
        >>> prior(torch.randint(11, (2, 24))).shape
        torch.Size([2, 24, 11])
    """

    def __init__(
        self,
        codes: CodePrior,
        *,
        labels: LabelEmbedding | None = None,
        upper: UpperCodes | None = None,
        lyrics: LyricsEncoder | None = None,
        lyric_tokens: int = 0,
        lyric_vocabulary: int = 0,
        copy_input: bool = False,
        lyric_loss: float = 0.4,
        hop: int = 1,
    ) -> None:
        super().__init__()
        if (labels is None) != (codes.start is not None):
            raise ValueError("with labels the prior over codes is built with labelled=True, without them with False")
        if lyrics is not None and lyric_vocabulary:
            raise ValueError("lyrics come apart (lyrics=) or in front (lyric_vocabulary=), not both ways")
        if (lyrics is not None or lyric_vocabulary) and not lyric_tokens:
            raise ValueError("a prior with lyrics needs lyric_tokens=, how many tokens each row of labels ends with")
        if lyrics is not None and labels is None and not copy_input:
            raise ValueError("lyrics stand in the rows of labels, so a prior with lyrics has labels")
        self.codes, self.labels, self.upper, self.lyrics = codes, labels, upper, lyrics
        self.lyric_tokens, self.lyric_vocabulary, self.lyric_loss = lyric_tokens, lyric_vocabulary, lyric_loss
        self.copy_input, self.hop = copy_input, hop
        self.in_front = lyric_tokens if lyric_vocabulary else 0
        self.max_length = codes.max_length - self.in_front
        self.num_codes = codes.num_codes - lyric_vocabulary

    def reset_parameters(self) -> None:
        """As the parts say."""
        for part in (self.codes, self.labels, self.upper, self.lyrics):
            if part is not None:
                part.reset_parameters()

    def forward(
        self,
        codes: Int[Tensor, "B N"],
        *,
        upper_codes: Int[Tensor, "B n"] | None = None,
        labels: Int[Tensor, "B L"] | None = None,
        key_mask: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Any:
        """The logits of all codes at once.

        Args:
            codes: of this level, numbers below ``num_codes``.
            upper_codes: those of the level above at the same time, for an upsampler.
            labels: rows as in :mod:`regard.models.jukebox_conditions`, lyrics included.
            key_mask: Bool (B, N), True for real codes.
            generator: draws the dropout of the weights.
            return_aux: also return what lyrics apart add to the mean loss of a code, in nats: "loss/lyrics".

        Returns:
            (B, N, num_codes); with ``return_aux`` a pair of it and a dict of tensors.

        Raises:
            ValueError: something that this prior needs or does not take, or that does not fit.
        """
        told = self._told(codes, upper_codes, labels)
        logits = self._joint(codes, told, key_mask, generator)[:, self.in_front :, self.lyric_vocabulary :]
        if not return_aux:
            return logits
        if self.lyrics is None or told.states is None or told.tokens is None:
            return logits, {}
        share = self.lyric_loss * told.tokens.shape[1] / codes.shape[1]
        return logits, {"loss/lyrics": share * self.lyrics.loss(told.states, told.tokens)}

    def bits(
        self,
        codes: Int[Tensor, "B N"],
        *,
        upper_codes: Int[Tensor, "B n"] | None = None,
        labels: Int[Tensor, "B L"] | None = None,
        generator: Generator | None = None,
    ) -> Bits:
        """The losses that the authors train by; lyrics in front and codes have one softmax.

        Args:
            codes, upper_codes, labels, generator: as in ``forward``.
        """
        told = self._told(codes, upper_codes, labels)
        logits, front = self._joint(codes, told, None, generator), self.in_front
        mine = _nats(logits[:, front:], codes + self.lyric_vocabulary) / math.log(2)
        theirs, count = torch.zeros_like(mine), 0
        if told.tokens is not None and (self.lyrics is not None or front):
            count = told.tokens.shape[1]
            if self.lyrics is not None and told.states is not None:
                theirs = self.lyrics.loss(told.states, told.tokens) / math.log(2)
            else:
                theirs = _nats(logits[:, :front], told.tokens) / math.log(2)
        whole = count + codes.shape[1]
        return Bits(self.lyric_loss * theirs * count / whole + mine * codes.shape[1] / whole, mine, theirs)

    def joint_logits(
        self,
        codes: Int[Tensor, "B N"],
        *,
        upper_codes: Int[Tensor, "B n"] | None = None,
        labels: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of lyrics in front and codes, over both vocabularies; without such lyrics those of ``forward``."""
        return self._joint(codes, self._told(codes, upper_codes, labels), None, None)

    def memory(
        self,
        batch: int,
        *,
        upper_codes: Int[Tensor, "B n"] | None = None,
        labels: Int[Tensor, "B L"] | None = None,
    ) -> PriorMemory:
        """The memory of ``batch`` sequences without a code; lyrics in front have been read.

        Args:
            batch: B.
            upper_codes: of all positions that will come.
            labels: as in ``forward``.
        """
        self._check_told(batch, None, upper_codes, labels)
        options, tokens, _ = self._conditions(batch, self.max_length, upper_codes, labels, None)
        memory = self.codes.memory(batch, **options)
        if not self.in_front or tokens is None:
            return memory
        _, memory = self.codes.resume(tokens[:, :-1], memory)
        return memory._replace(pending=self.codes.embedding(tokens[:, -1:]))

    def stream(self, codes: Int[Tensor, "B n"], memory: PriorMemory) -> tuple[Tensor, PriorMemory]:
        """Read the codes that have been chosen; see :meth:`CodePrior.stream`."""
        logits, memory = self.codes.stream(codes + self.lyric_vocabulary, memory)
        return logits[..., self.lyric_vocabulary :], memory

    def resume(self, codes: Int[Tensor, "B n"], memory: PriorMemory) -> tuple[Tensor, PriorMemory]:
        """As ``stream``, for callers who made the memory themselves."""
        logits, memory = self.codes.resume(codes + self.lyric_vocabulary, memory)
        return logits[..., self.lyric_vocabulary :], memory

    def _joint(self, codes: Tensor, told: _Told, key_mask: Tensor | None, generator: Generator | None) -> Tensor:
        """Logits of lyrics in front and codes, over both vocabularies."""
        if self.in_front and told.tokens is not None:
            codes = torch.cat((told.tokens, codes + self.lyric_vocabulary), 1)
            key_mask = None if key_mask is None else F.pad(key_mask, (self.in_front, 0), value=True)
        return self.codes(codes, key_mask=key_mask, generator=generator, **told.options)

    def _told(self, codes: Tensor, upper_codes: Tensor | None, labels: Tensor | None) -> _Told:
        if codes.ndim != 2 or codes.shape[1] > self.max_length:
            rule = f"(batch, at most max_length={self.max_length})"
            raise ValueError(f"codes have shape {tuple(codes.shape)}, expected {rule}")
        self._check_told(len(codes), codes.shape[1], upper_codes, labels)
        return self._conditions(len(codes), codes.shape[1], upper_codes, labels, codes)

    def _conditions(
        self, batch: int, length: int, upper_codes: Tensor | None, labels: Tensor | None, codes: Tensor | None
    ) -> _Told:
        """Start, condition and context of the prior over codes, the lyrics, and what the encoder made of them."""
        start = signal = tokens = states = None
        if self.labels is not None and labels is not None:
            columns = LENGTHS + self.labels.max_genres
            start, signal = self.labels(labels[:, :columns])
            tokens = labels[:, columns:] if self.lyric_tokens else None
        condition = self.upper(upper_codes) if self.upper is not None else signal
        if condition is not None:
            condition = condition[:, :length]
            condition = F.pad(condition, (0, 0, self.in_front, 0))
        if self.copy_input and codes is not None:
            tokens = codes[:, : self.lyric_tokens]
        options: dict[str, Any] = {"start": start, "condition": condition}
        if self.lyrics is not None and tokens is not None:
            states = options["context"] = self.lyrics(tokens)
        return _Told(options, tokens, states)

    def _check_told(self, batch: int, length: int | None, upper_codes: Tensor | None, labels: Tensor | None) -> None:
        if (self.upper is None) != (upper_codes is None):
            wanted = "takes no upper_codes" if self.upper is None else "needs upper_codes=, those of the level above"
            raise ValueError(f"this prior {wanted}")
        if (self.labels is None) != (labels is None):
            wanted = "was built without labels" if self.labels is None else "needs labels=, rows of integers"
            raise ValueError(f"this prior {wanted}")
        if self.upper is not None and upper_codes is not None and length is not None:
            fits = upper_codes.shape == (batch, -(-length // self.upper.factor))
            if not fits:
                rule = (
                    f"{length} codes need (batch, {-(-length // self.upper.factor)}): one for {self.upper.factor} each"
                )
                raise ValueError(f"upper_codes have shape {tuple(upper_codes.shape)}, but {rule}")
        if self.labels is not None and labels is not None:
            expected = (batch, LENGTHS + self.labels.max_genres + self.lyric_tokens)
            if labels.shape != expected:
                parts = f"4, {self.labels.max_genres} genres and {self.lyric_tokens} lyric tokens"
                raise ValueError(f"labels have shape {tuple(labels.shape)}, expected {expected}: {parts}")


def _nats(logits: Tensor, codes: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten())
