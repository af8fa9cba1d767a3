"""Fast weights of IDSIA/lmtool-fwp, with the norm and the residual around them, and the recurrences of fla."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, bind
from regard.mechanisms.linear.delta_rule import DeltaRule
from regard.ops.delta_rule import delta_rule
from regard.registry import UnsupportedError


class FastWeightBlock(nn.Module):
    """Theirs: a LayerNorm before the layer, whose output is also what the residual adds, or one behind the sum.

    Args:
        pre_norm: the norm comes before.
        options: those of :class:`DeltaRule`.
    """

    def __init__(self, pre_norm: bool, **options: Any) -> None:
        super().__init__()
        self.pre_norm, self.layer = pre_norm, DeltaRule(**options)
        self.layer_norm = nn.LayerNorm(self.layer.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C)."""
        x = self.layer_norm(x) if self.pre_norm else x
        y = x + self.layer(x)
        return y if self.pre_norm else self.layer_norm(y)


def _block_arguments(config: Config, features: str, skip: bool) -> dict[str, Any]:
    """``skip``: the default of their ``skip_attn_normalization``. Their ``dropatt`` is never used."""
    return {
        "dim": config["d_model"],
        "num_heads": config["n_head"],
        "head_dim": config["d_head"],
        "features": features,
        "nu": config.get("n_roll", 2),
        "normalise": not config.get("skip_attn_normalization", skip),
        "eps": config.get("eps", 1e-5),
        "proj_drop": config.get("dropout", 0.0),
        "pre_norm": config.get("pre_lnorm", False),
    }


def _block_weights(state: State) -> State:
    """Their one projection has the rows of q, k, v and beta of a head together."""
    rows, out = state["qkvb_net.weight"], state["o_net.weight"]
    heads = rows.shape[0] - 3 * out.shape[1]
    width = out.shape[1] // heads
    parts = zip(("q", "k", "v", "beta"), rows.unflatten(0, (heads, -1)).split((width, width, width, 1), 1), strict=True)
    found = {f"layer.{name}_proj.weight": part.flatten(0, 1) for name, part in parts}
    norm = {name: t for name, t in state.items() if name.startswith("layer_norm.")}
    return found | norm | {"layer.out_proj.weight": out}


def _block_call(module: FastWeightBlock, inputs: Inputs, call: Call) -> Outputs:
    """Theirs is (N, B, C); it never looks at its mask."""
    given = bind(inputs, call, "h", "attn_mask", "mems")
    if "mems" in given:
        raise UnsupportedError("mems: what theirs carries over is the pair of memory and sum; use DeltaRule.stream")
    return {"out": module(given["h"].transpose(0, 1)).transpose(0, 1)}


class Recurrence(nn.Module):
    """The rule alone, as fla computes it.

    Args:
        scale: of the queries; D^(-1/2) by default.
    """

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, H, N, D), values (B, H, N, Dv) and beta (B, H, N) -> the rows, and the state at the end.

        Beta may be (B, H, N, 1) as well; one for each value channel, (B, H, N, Dv), makes a head of each channel.
        """
        beta = beta.squeeze(-1) if beta.shape[-1] == 1 and beta.ndim == v.ndim else beta
        if beta.ndim < v.ndim:
            return delta_rule(q, k, v, beta, state, scale=self.scale)
        batch, heads, n, width = v.shape
        q, k = (t.repeat_interleave(width, 1) for t in (q, k))
        v, beta = (t.transpose(2, 3).reshape(batch, heads * width, n) for t in (v, beta))
        state = None if state is None else state.mT.reshape(batch, heads * width, -1, 1)
        out, state = delta_rule(q, k, v[..., None], beta, state, scale=self.scale)
        return out.reshape(batch, heads, width, n).mT, state.reshape(batch, heads, width, -1).mT


def _recurrence_arguments(config: Config) -> dict[str, Any]:
    """Their functions always scale by dk^(-1/2), which a header may say in words."""
    scale = config.get("scale")
    return {"scale": scale if isinstance(scale, (int, float)) else None}


def _recurrence_call(module: Recurrence, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "q", "k", "v", "beta", "initial_state")
    out, state = module(*(given[name] for name in ("q", "k", "v", "beta")), given.get("initial_state"))
    return {"out": out, "final_state": state}


def _chunkwise_call(module: Recurrence, inputs: Inputs, call: Call) -> Outputs:
    """Theirs takes an initial state and does not look at it."""
    return _recurrence_call(module, {name: t for name, t in inputs.items() if name != "initial_state"}, call)


_BLOCKS = "IDSIA/lmtool-fwp:src/utils/cuda_fast_weight_layer.py"
_RULES = "fla-org/flash-linear-attention:fla/ops/delta_rule/naive.py"
IMPORTERS = {
    f"{_BLOCKS}:CudaFastWeightDPFPTransformerLayer": Importer(
        FastWeightBlock, partial(_block_arguments, features="dpfp", skip=False), _block_call, _block_weights
    ),
    f"{_BLOCKS}:CudaFastWeightLinearTransformerLayer": Importer(
        FastWeightBlock, partial(_block_arguments, features="elu", skip=True), _block_call, _block_weights
    ),
    f"{_RULES}:delta_rule_recurrence": Importer(Recurrence, _recurrence_arguments, _recurrence_call),
    f"{_RULES}:delta_rule_chunkwise": Importer(Recurrence, _recurrence_arguments, _chunkwise_call),
}
