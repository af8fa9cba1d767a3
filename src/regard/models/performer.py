"""Performer: a Transformer whose softmax is estimated by random features, drawn anew now and then.

Choromanski et al. 2020, arXiv:2009.14794, sections 3 and 4.
"""

from typing import Any, cast

from torch import Generator, Tensor

from regard.mechanisms.linear.performer import Performer as PerformerAttention
from regard.models.transformer import TransformerLM


class Performer(TransformerLM):
    """Logits of the token after each (causal), or of each token itself (a masked language model).

    Every ``redraw_every`` training steps all layers draw new features, as the paper does: a model that is trained with
    one draw learns to rely on its errors. Evaluation keeps the last ones; how far the next step is goes into the state
    dict.

    Args:
        vocab_size, dim, depth, num_heads, max_length: sizes.
        causal: no token sees a later one.
        num_features: m, random features; by default d ln d.
        features: "softmax", "symmetric" or "relu", see :func:`regard.mechanisms.linear.performer.performer_attention`.
        redraw_every: training steps between draws; 0: never.
        options: those of :class:`regard.models.TransformerLM`.

    Example:
        >>> import torch
        >>> Performer(256, 16, 2, 2, 64)(torch.randint(256, (3, 10))).shape
        torch.Size([3, 10, 256])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        max_length: int,
        *,
        causal: bool = True,
        num_features: int | None = None,
        features: str = "softmax",
        redraw_every: int = 1000,
        **options: Any,
    ) -> None:
        if redraw_every < 0:
            raise ValueError(f"redraw_every={redraw_every} steps: 0 means never")
        attention: dict[str, Any] = {"causal": causal, "num_features": num_features, "features": features}
        super().__init__(vocab_size, dim, depth, num_heads, max_length, "performer", **attention, **options)
        self.redraw_every, self._steps = redraw_every, 0

    def forward(
        self,
        tokens: Tensor,
        *,
        key_mask: Tensor | None = None,
        segments: Tensor | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """As :class:`regard.models.TransformerLM`; in training the features are drawn anew when it is time."""
        if self.training and self.redraw_every:
            if self._steps and self._steps % self.redraw_every == 0:
                self.redraw(generator)
            self._steps += 1
        options: dict[str, Any] = {"segments": segments, "generator": generator, "return_aux": return_aux}
        return super().forward(tokens, key_mask=key_mask, **options)

    def redraw(self, generator: Generator | None = None) -> None:
        """New features in every layer; a memory from before is then worth nothing."""
        for part in self.modules():
            if isinstance(part, PerformerAttention):
                part.redraw(generator)

    def get_extra_state(self) -> dict[str, int]:
        """How many training steps have been made."""
        return {"steps": self._steps}

    def set_extra_state(self, state: Any) -> None:
        """Go on counting from there."""
        self._steps = int(cast(dict[str, int], state)["steps"])
