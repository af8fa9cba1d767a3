"""From recordings of speech to labels: an encoder over any mechanism that CTC reads out, and a decoder that attends.

Watanabe et al. 2017, "Hybrid CTC/attention architecture", doi:10.1109/JSTSP.2017.2763455; Kim et al. 2016,
arXiv:1609.06773. Log-mel frames, four to a state, encoder; of its states are learned together

    loss = weight CTC(labels) + (1 - weight) cross-entropy of an attention decoder(labels, end)

CTC keeps the decoder's attention from wandering off, the decoder knows what CTC does not: that labels depend on each
other. Labels are numbered from 1, the blank is 0, and the decoder has one more, ``end``, around every utterance.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from regard.models.frame_norm import Normalise
from regard.models.hybrid import HybridLoss, attention_loss, hybrid_loss
from regard.models.location_decoder import LocationDecoder
from regard.models.log_mel import HeardSoFar, LogMel, check_end
from regard.models.speech_decoder import TransformerDecoder
from regard.models.speech_encoder import Encoded, SpeechEncoder, StatesSoFar
from regard.models.subsampling import FACTOR
from regard.ops.initialisation import fan_in_normal_
from regard.ops.masks import check_mask
from regard.registry import UnsupportedError

Told = dict[str, Tensor]
BLANK = 0


class SpeechSoFar(NamedTuple):
    """What :meth:`SpeechRecognizer.stream` carries along."""

    sounds: HeardSoFar
    states: StatesSoFar


class SpeechRecognizer(nn.Module):
    """Waveforms or frames in, log-probabilities of labels for every fourth frame out; see the head of this file.

    Args:
        num_labels: V, the blank (0) among them.
        dim, depth, num_heads, mechanism: of the encoder.
        sample_rate, num_mels, normalise: of :class:`regard.models.log_mel.LogMel`; ``normalise=None`` is "utterance",
            and "running" where the encoder can be streamed.
        decoder: "lstm" (with location-aware attention), "transformer" or None.
        decoder_options: what else its class shall have, e.g. ``{"dim": 320}``; its width is ``dim`` otherwise.
        ctc_weight: of CTC in the loss; without a decoder it is 1.
        label_smoothing: of the decoder's cross-entropy.
        dropout: of encoder and decoder, and on the states before CTC reads them.
        encoder_options: what else :class:`regard.models.speech_encoder.SpeechEncoder` and the mechanism shall have:
            ``causal`` or ``chunk`` for streams, ``convolution``, ``channels`` and so on.

    Raises:
        ValueError, UnsupportedError: sizes or options that do not fit.

    Example:
        >>> model = SpeechRecognizer(29, 16, 1, 4, "local", sample_rate=8000, num_mels=40, window=8)
        >>> model(torch.randn(2, 8000)).shape
        torch.Size([2, 25, 29])
    """

    def __init__(
        self,
        num_labels: int,
        dim: int = 144,
        depth: int = 6,
        num_heads: int = 4,
        mechanism: str = "full",
        *,
        sample_rate: int = 16000,
        num_mels: int = 80,
        normalise: Normalise | None = None,
        decoder: Literal["lstm", "transformer"] | None = "lstm",
        decoder_options: Mapping[str, Any] | None = None,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.0,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **encoder_options: Any,
    ) -> None:
        super().__init__()
        if num_labels < 2:
            raise ValueError(f"num_labels={num_labels}: there is the blank, 0, and one label at least")
        if not 0 <= ctc_weight <= 1:
            raise ValueError(f"ctc_weight={ctc_weight} does not lie between 0 and 1")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_labels, self.blank, self.end = num_labels, BLANK, num_labels
        self.ctc_weight = 1.0 if decoder is None else ctc_weight
        self.label_smoothing = label_smoothing
        self.encoder = SpeechEncoder(
            num_mels, dim, depth, num_heads, mechanism, dropout=dropout, **factory, **encoder_options
        )
        normalise = normalise or ("running" if self.encoder.streams else "utterance")
        self.log_mel = LogMel(sample_rate, num_mels, normalise=normalise, **factory)
        self.drop, self.ctc_out = nn.Dropout(dropout), nn.Linear(dim, num_labels, **factory)
        self.decoder = _decoder(decoder, num_labels + 1, dim, {"drop": dropout, **(decoder_options or {}), **factory})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The layer that CTC reads starts with variance 1 / fan-in and biases 0, as in ESPnet; all else by itself."""
        fan_in_normal_(self.ctc_out.weight)
        nn.init.zeros_(self.ctc_out.bias)

    @property
    def frame_seconds(self) -> float:
        """How long a state lasts; state t begins t of these after the start."""
        return FACTOR * self.log_mel.hop / self.log_mel.sample_rate

    def forward(
        self,
        x: Tensor,
        *,
        key_mask: Bool[Tensor, "B N"] | None = None,
        context: Int[Tensor, "B L"] | None = None,
        context_mask: Bool[Tensor, "B L"] | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Float[Tensor, "B S V"] | tuple[Float[Tensor, "B S V"], Told]:
        """Log-probabilities of labels, in float32 at least; padded states are certainly blank.

        So a loss, a search or an alignment over all states is the one over real states: see :func:`real_frames`.

        Args:
            x: waveforms (B, N), or frames (B, N, M) as ``log_mel`` makes them, in any precision.
            key_mask: True for real samples or frames; padding stands at the end.
            context: labels of the utterances, from 1; what stands in padding does not matter.
            context_mask: True for real labels; padding stands at the end.
            generator: the source of everything random in the mechanism.
            return_aux: also return what the layers have to tell, and with a context "loss/attention": the decoder's
                mean cross-entropy of a label, times 1 - ``ctc_weight``. The rest of the loss is ``ctc_weight`` times
                CTC of the log-probabilities.

        Raises:
            TypeError, ValueError: shapes or masks that do not fit, or labels that there are not.
        """
        encoded = self.encode(x, key_mask, generator=generator)
        log_probs = self.log_probs(encoded)
        if not return_aux:
            return log_probs
        aux: Told = {}
        for name, value in encoded.told.items():
            kind, _, rest = name.partition("/")
            aux[f"{kind}/encoder.{rest}"] = value
        if context is not None and self.decoder is not None and self.ctc_weight < 1:
            logits = self.decoder_logits(encoded, context, context_mask)
            options: dict[str, Any] = {"label_mask": context_mask, "end": self.end, "smoothing": self.label_smoothing}
            count = logits.shape[0] * logits.shape[1] if context_mask is None else context_mask.sum() + len(context)
            aux["loss/attention"] = (1 - self.ctc_weight) * attention_loss(logits, context, **options).sum() / count
        return log_probs, aux

    def loss(
        self,
        x: Tensor,
        labels: Int[Tensor, "B L"],
        *,
        key_mask: Bool[Tensor, "B N"] | None = None,
        label_mask: Bool[Tensor, "B L"] | None = None,
        normalise: Literal["utterance", "token"] = "utterance",
    ) -> HybridLoss:
        """The hybrid objective of recordings with their labels; see :func:`regard.models.hybrid.hybrid_loss`.

        Raises:
            ValueError: recordings with fewer states than labels and a blank between equal ones; they are counted.
            UnsupportedError: there is no decoder.
        """
        encoded = self.encode(x, key_mask)
        return hybrid_loss(
            self.log_probs(encoded),
            self.decoder_logits(encoded, labels, label_mask),
            labels,
            frame_mask=encoded.mask,
            label_mask=label_mask,
            end=self.end,
            blank=self.blank,
            ctc_weight=self.ctc_weight,
            smoothing=self.label_smoothing,
            normalise=normalise,
        )

    def encode(
        self, x: Tensor, key_mask: Bool[Tensor, "B N"] | None = None, *, generator: Generator | None = None
    ) -> Encoded:
        """The states of recordings, given as in :meth:`forward`."""
        if x.ndim == 2:
            x, key_mask = self.log_mel(x, key_mask)
        elif x.ndim != 3 or x.shape[-1] != self.log_mel.num_mels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: expected waveforms (batch, samples) or frames "
                f"(batch, frames, {self.log_mel.num_mels})"
            )
        else:
            check_mask(key_mask, x.shape[0], x.shape[1])
            check_end(key_mask)
        return self.encoder(x.to(self.ctc_out.weight.dtype), key_mask, generator=generator)

    def log_probs(self, encoded: Encoded) -> Float[Tensor, "B S V"]:
        """What CTC reads in states."""
        found = self._read(encoded.states)
        if encoded.mask is None:
            return found
        certain = torch.full_like(found[:1, :1], -torch.inf)
        certain[..., self.blank] = 0.0
        return torch.where(encoded.mask[..., None], found, certain)

    def decoder_logits(
        self, encoded: Encoded, labels: Int[Tensor, "B L"], label_mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L+1 W"]:
        """The decoder's logits of each label, and of the end behind the last; given the labels before it.

        Raises:
            UnsupportedError: there is no decoder.
        """
        decoder, given = self._deciding(), self._started(labels, label_mask)
        out = decoder(encoded.states, given, key_mask=encoded.mask)
        return out if isinstance(out, Tensor) else out[0]

    def attention(
        self,
        x: Tensor,
        labels: Int[Tensor, "B L"],
        *,
        key_mask: Bool[Tensor, "B N"] | None = None,
        label_mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L+1 S"]:
        """Where the decoder looks when it says each label, and the end: weights over states."""
        encoded, decoder, given = self.encode(x, key_mask), self._deciding(), self._started(labels, label_mask)
        if isinstance(decoder, TransformerDecoder):
            return decoder.weights(encoded.states, given, key_mask=encoded.mask)
        return decoder(encoded.states, given, key_mask=encoded.mask)[1]

    def begin(self, x: Tensor, key_mask: Bool[Tensor, "B N"] | None = None) -> Any:
        """What the decoder knows of recordings before its first label: see :meth:`step`."""
        return self.begin_encoded(self.encode(x, key_mask))

    def begin_encoded(self, encoded: Encoded) -> Any:
        """The same from states on."""
        return self._deciding().begin(encoded.states, encoded.mask)

    def step(self, tokens: Int[Tensor, " B"], memory: Any) -> tuple[Float[Tensor, "B W"], Any]:
        """Logits of the label after the next one, which is at first ``end``, and the new memory."""
        return self._deciding().step(tokens, memory)

    def begin_stream(self, batch: int) -> SpeechSoFar:
        """The memory of so many recordings of which nothing has been heard.

        Raises:
            UnsupportedError: an encoder or a mechanism that reads whole recordings.
        """
        states = self.encoder.memory(batch)
        return SpeechSoFar(self.log_mel.memory(batch), states)

    def stream(self, samples: Float[Tensor, "B N"], memory: SpeechSoFar) -> tuple[Float[Tensor, "B S V"], SpeechSoFar]:
        """Go on with the next samples, however many.

        Returns:
            Log-probabilities of the states that they complete, perhaps of none, and the new memory. Together with
            those of :meth:`finish` they are what ``forward`` gives.
        """
        return self._stream(samples, memory, last=False)

    def finish(self, memory: SpeechSoFar) -> Float[Tensor, "B S V"]:
        """Log-probabilities of the last states, for which the stream had to wait until it ended."""
        samples = memory.sounds.samples
        return self._stream(samples[:, :0].to(self.ctc_out.weight.dtype), memory, last=True)[0]

    def _stream(self, samples: Tensor, memory: SpeechSoFar, *, last: bool) -> tuple[Tensor, SpeechSoFar]:
        frames, sounds = self.log_mel.stream(samples, memory.sounds, last=last)
        x, states = self.encoder.stream(frames.to(self.ctc_out.weight.dtype), memory.states, last=last)
        return self._read(x), SpeechSoFar(sounds, states)

    def _read(self, states: Tensor) -> Tensor:
        logits = self.ctc_out(self.drop(states))
        return F.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def _deciding(self) -> LocationDecoder | TransformerDecoder:
        if self.decoder is None:
            raise UnsupportedError('this recognizer has no decoder: build it with decoder="lstm" or "transformer"')
        return self.decoder

    def _started(self, labels: Tensor, label_mask: Tensor | None) -> Tensor:
        """Labels behind the start; where there are none the end stands, which nobody looks at."""
        check_mask(label_mask, *labels.shape, name="label_mask")
        given = labels if label_mask is None else labels.masked_fill(~label_mask, self.end)
        if given.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere reading it means waiting
            real = given if label_mask is None else labels[label_mask]
            if real.numel() and not 1 <= int(real.min()) <= int(real.max()) < self.num_labels:
                raise ValueError(
                    f"labels lie between {int(real.min())} and {int(real.max())}: this recognizer has labels "
                    f"1 to {self.num_labels - 1}, and the blank, 0, is none"
                )
        return F.pad(given, (1, 0), value=self.end)


def real_frames(log_probs: Float[Tensor, "B S V"]) -> Bool[Tensor, "B S"]:
    """Which states of a :class:`SpeechRecognizer`'s log-probabilities are real: padded ones are certainly blank.

    Example:
        >>> real_frames(torch.tensor([[[-0.7, -0.7], [0.0, -torch.inf]]])).tolist()
        [[True, False]]
    """
    return ~log_probs.isneginf().any(-1)


def _decoder(
    kind: str | None, labels: int, dim: int, options: dict[str, Any]
) -> LocationDecoder | TransformerDecoder | None:
    if kind is None:
        return None
    if kind not in ("lstm", "transformer"):
        raise ValueError(f'decoder={kind!r} is none of "lstm", "transformer" and None')
    made = LocationDecoder if kind == "lstm" else TransformerDecoder
    return made(labels, dim, **cast(dict[str, Any], {"dim": dim, **options}))
