"""The TaLKConv of lioutasb/TaLKConvolutions; its kernel runs on CUDA only, so its numbers come from the equations."""

from typing import Any

from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind, renamed
from regard.mechanisms.linear.talk_convolutions import Windows, talk_convolution
from regard.registry import UnsupportedError


class TaLKConv(nn.Module):
    """Windows over x itself, without projections.

    Args:
        width, num_heads: of x.
        max_left, max_right: the largest reaches. Theirs divides by both also where ``decode`` leaves the right one out.
        decode: causal.
        drop: dropout on the reaches.
    """

    def __init__(
        self, width: int, num_heads: int, max_left: int, max_right: int, *, decode: bool, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads, self.max_left, self.max_right, self.decode = num_heads, max_left, max_right, decode
        self.windows = Windows(width, num_heads, both=not decode, drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C)."""
        u = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        left, right = self.windows(x)
        reach = 0 if right is None else self.max_right
        out = talk_convolution(u, left, right if reach else None, max_left=self.max_left, max_right=reach)
        out = out * ((self.max_left + reach + 1) / (self.max_left + self.max_right + 1))
        return out.transpose(1, 2).flatten(2)


def _arguments(config: Config) -> dict[str, Any]:
    width, heads = config["hid_dim"], config.get("num_heads", 1)
    if width % heads:
        raise UnsupportedError(
            f"hid_dim={width} is no multiple of num_heads={heads}: talk_convolutions has whole heads"
        )
    return {
        "width": width,
        "num_heads": heads,
        "max_left": config.get("min_len_left", 1),
        "max_right": config.get("min_len_right", 1),
        "decode": config.get("decode", False),
        "drop": config.get("offsets_dropout", 0.0),
    }


def _weights(state: State) -> State:
    return renamed(state, {"^offsets": "windows.offsets"})


def _call(module: TaLKConv, inputs: Inputs, call: Call) -> Outputs:
    """Theirs is (N, B, C), and never looks at its mask."""
    given = bind(inputs, {} if isinstance(call.get("x"), str) else call, "x", "incremental_state", "mask")
    if "incremental_state" in given:
        raise UnsupportedError("incremental_state: theirs keeps all prefix sums; use TalkConvolutions.stream")
    return {"y": module(given["x"].transpose(0, 1)).transpose(0, 1)}


_CONVOLUTION = Importer(TaLKConv, _arguments, _call, _weights)
IMPORTERS = {
    "lioutasb/TaLKConvolutions:talkconv/talkconv_fairseq/talkconv_module.py:TaLKConv": _CONVOLUTION,
    "equations": _CONVOLUTION,
}
