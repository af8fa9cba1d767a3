"""The causal attention of lucidrains/sinkhorn-transformer, which picks whole earlier blocks instead of sorting them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, bind
from regard.mechanisms.chosen.sinkhorn import sort_blocks
from regard.registry import UnsupportedError


class CausalPick(nn.Module):
    """``SinkhornCausalAttention``: every block looks at itself and at the best few of the blocks before it.

    A picked block is multiplied by the softmax weight that it was picked with, keys and values alike; so many null
    blocks stand before the first. The later half of the heads cuts its blocks L - 1 tokens further on.

    Args:
        num_heads, head_dim: H and D.
        block_length: L.
        most_blocks: of the longest sequence.
        picks: how many blocks are picked.
        temperature: of the softmax.
        table: score by a learned table instead of by the running means of queries and keys.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        block_length: int,
        most_blocks: int,
        picks: int,
        temperature: float,
        *,
        table: bool,
    ) -> None:
        super().__init__()
        self.block_length, self.picks, self.temperature = block_length, picks, temperature
        self.null_keys = nn.Parameter(torch.zeros(num_heads, 1, head_dim))
        self.null_values = nn.Parameter(torch.zeros(num_heads, 1, head_dim))
        self.sort_net = nn.Module()
        if table:
            self.sort_net.linear = nn.Parameter(torch.zeros(1, num_heads, 2 * head_dim, most_blocks + picks))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Heads first (B, H, N, D), N a multiple of L -> out and the picks (B H, blocks x picks, picks + blocks)."""
        length, half = self.block_length, q.shape[1] // 2
        if q.shape[2] % length:
            raise ValueError(f"{q.shape[2]} tokens are no multiple of bucket_size={length}")
        blocks = q.shape[2] // length
        picks = min(self.picks, blocks)
        q, k, v = (self._turned(t, half, 1 - length) for t in (q, k, v))
        order = self._picked(self._scores(q, k, picks), picks)
        nulls = (t.repeat_interleave(picks * length, 1).expand(len(q), -1, -1, -1) for t in self._nulls)
        far_k, far_v = (
            sort_blocks(order, torch.cat((null, t), 2), length) for null, t in zip(nulls, (k, v), strict=True)
        )
        far_k, far_v, own_k, own_v = (t.unflatten(2, (blocks, -1)) for t in (far_k, far_v, k, v))
        scores = q.unflatten(2, (blocks, -1)) @ torch.cat((far_k, own_k), 3).mT / q.shape[-1] ** 0.5
        hidden = self._hidden(q.shape[1], half, blocks, picks, q.device)
        weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1)
        out = (weights @ torch.cat((far_v, own_v), 3)).flatten(2, 3)
        return self._turned(out, half, length - 1), order.flatten(0, 1)

    @property
    def _nulls(self) -> tuple[Tensor, Tensor]:
        return self.null_keys, self.null_values

    def _turned(self, x: Tensor, half: int, shift: int) -> Tensor:
        return torch.cat((x[:, :half], x[:, half:].roll(shift, 2)), 1)

    def _scores(self, q: Tensor, k: Tensor, picks: int) -> Tensor:
        """(B, H, blocks, picks + blocks), by what is known at the first token of each block."""
        length = self.block_length
        steps = torch.arange(1, q.shape[2] + 1, device=q.device, dtype=q.dtype)[:, None]
        mean = k.cumsum(2) / steps
        table = getattr(self.sort_net, "linear", None)
        if table is not None:
            first = torch.cat((mean, k), -1)[:, :, ::length]
            return F.leaky_relu(first @ table[0])[..., : picks + first.shape[2]]
        asks = (q.cumsum(2) / steps)[:, :, ::length]
        asked = F.pad(mean.unflatten(2, (-1, length)).sum(3), (0, 0, picks, 0))
        return asks @ asked.mT * q.shape[-1] ** -0.5

    def _picked(self, scores: Tensor, picks: int) -> Tensor:
        """(B, H, blocks x picks, picks + blocks): each row has the weight of one pick; a block has so many rows."""
        rows, columns = (torch.arange(size, device=scores.device) for size in scores.shape[-2:])
        scores = scores.masked_fill(columns - picks >= rows[:, None], -torch.inf)
        found: list[Tensor] = []
        for _ in range(picks):
            equal = scores == scores.amax(-1, keepdim=True)  # of equal ones the last; topk differs between devices
            place = torch.where(equal, columns, -1).amax(-1, keepdim=True)
            weight = (scores / self.temperature).softmax(-1).gather(-1, place)
            found.append(torch.zeros_like(scores).scatter(-1, place, weight))
            scores = scores.scatter(-1, place, -torch.inf)
        return torch.cat(found, -1).unflatten(-1, (picks, -1)).flatten(2, 3)

    def _hidden(self, heads: int, half: int, blocks: int, picks: int, device: torch.device) -> Tensor:
        """Later tokens of one's block; and in the turned heads what has wrapped around into the last block."""
        length = self.block_length
        hidden = torch.zeros(heads, blocks, length, (picks + 1) * length, dtype=torch.bool, device=device)
        hidden[..., picks * length :] = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        hidden[half:, -1, 1:, : picks * length + 1] = True
        return hidden


def _arguments(config: Config) -> dict[str, Any]:
    length = config["bucket_size"]
    if config.get("kv_bucket_size") not in (None, length):
        raise UnsupportedError(f"kv_bucket_size={config['kv_bucket_size']}: theirs is causal with one bucket size only")
    return {
        "num_heads": config["heads"],
        "head_dim": config["dim_heads"],
        "block_length": length,
        "most_blocks": config["max_seq_len"] // length,
        "picks": config.get("n_top_buckets", 2),
        "temperature": config.get("temperature", 1.0),
        "table": config.get("use_simple_sort_net", False),
    }


def _call(module: CausalPick, inputs: Inputs, call: Call) -> Outputs:
    given = bind(inputs, call, "q", "k", "v", "q_mask", "kv_mask")
    if given.keys() & {"q_mask", "kv_mask"}:
        raise UnsupportedError("q_mask, kv_mask: their mask of picked blocks is right for two picks only; not loaded")
    out, order = module(given["q"], given["k"], given["v"])
    return {"out": out, "sort_matrix": order}


IMPORTERS = {
    "lucidrains/sinkhorn-transformer:*:SinkhornCausalAttention": Importer(CausalPick, _arguments, _call),
}
