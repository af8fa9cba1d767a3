"""Local attention of lucidrains/local-attention: blocks of keys around the query's own."""

from typing import Any

from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, bind
from regard.mechanisms.patterned.local import Local
from regard.registry import UnsupportedError


class Blocks(nn.Module):
    """:class:`Local` in blocks, on (..., N, D), with their scale.

    Args:
        scale: of the scores; 1/sqrt(D) by default.
        options: those of :class:`Local`.
    """

    def __init__(self, scale: float | None = None, **options: Any) -> None:
        super().__init__()
        self.core, self.scale = Local(form="blocks", **options), scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, D) or (B, N, D); mask Bool (B, N), True for real tokens."""
        if self.scale is not None:
            q = q * (self.scale * q.shape[-1] ** 0.5)
        if q.ndim == 3:
            return self.core(q[:, None], k[:, None], v[:, None], key_mask=mask)[:, 0]
        return self.core(q, k, v, key_mask=mask)


def _arguments(config: Config) -> dict[str, Any]:
    rotary = config.get("use_rotary_pos_emb", True) and (config.get("dim") or config.get("rel_pos_emb_config"))
    for option, reason in (("shared_qk", config.get("shared_qk")), ("use_rotary_pos_emb", rotary)):
        if reason:
            raise UnsupportedError(f"{option}=True belongs to their projections, not to the window: it is not loaded")
    return {
        "scale": config.get("scale"),
        "window": config["window_size"],
        "causal": config.get("causal", False),
        "look_backward": config.get("look_backward", 1),
        "look_forward": config.get("look_forward"),
        "exact": config.get("exact_windowsize", False),
        "attn_drop": config.get("dropout", 0.0),
    }


def _call(module: Blocks, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "q", "k", "v", "mask")
    return {"out": module(*(given[name] for name in ("q", "k", "v")), given.get("mask"))}


IMPORTERS = {
    "lucidrains/local-attention:local_attention/local_attention.py:LocalAttention": Importer(Blocks, _arguments, _call),
}
