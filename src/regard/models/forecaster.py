"""A forecaster over any mechanism by name: the past of a series is encoded, a linear head gives its future.

Each step of the past is projected to C features, with learned positions, and passes the blocks of
:mod:`regard.models.transformer`. Two matrices then turn N steps of C features into P steps of V variables, and the last
known value is added: before it has learned anything, the model says that nothing will change.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.factory import create
from regard.models.transformer import Block
from regard.models.transformer_2017 import sinusoids
from regard.ops.masks import check_mask, check_tokens


class TransformerForecaster(nn.Module):
    """The next ``horizon`` steps of the first ``outputs`` variables.

    Args:
        inputs: numbers a step: the variables to forecast first, then whatever else is known, such as time marks.
        outputs: V, how many of them are forecast.
        horizon: P.
        dim, depth, num_heads: of the encoder.
        max_length: the longest past.
        mechanism: the registry name of the attention, which sees all of the past.
        mlp_ratio: the hidden width of the MLPs, in multiples of ``dim``.
        dropout: on the embeddings and on both branches of each block.
        mechanism_options: what else :func:`regard.create` shall pass on.

    Raises:
        ValueError: fewer inputs than outputs.
        UnsupportedError: something that the mechanism cannot do.

    Example:
        >>> model = TransformerForecaster(7 + 4, 7, 24, 16, 2, 2, 96, "linear_transformer")
        >>> model(torch.randn(3, 96, 11)).shape
        torch.Size([3, 24, 7])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        horizon: int,
        dim: int,
        depth: int,
        num_heads: int,
        max_length: int,
        mechanism: str = "full",
        *,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mechanism_options: Any,
    ) -> None:
        super().__init__()
        if not 1 <= outputs <= inputs:
            raise ValueError(f"{outputs} outputs of {inputs} inputs: what is forecast must be among what is known")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"max_length": max_length, "causal": False, **factory, **mechanism_options}
        self.inputs, self.outputs, self.max_length = inputs, outputs, max_length
        self.embedding = nn.Linear(inputs, dim, **factory)
        self.position_embedding = nn.Embedding(max_length, dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            attention = create(mechanism, dim=dim, num_heads=num_heads, **options)
            self.blocks.append(Block(attention, dim, mlp_ratio=mlp_ratio, dropout=dropout, **factory))
        self.norm = nn.LayerNorm(dim, **factory)
        self.over_time = nn.Linear(max_length, horizon, **factory)
        self.over_features = nn.Linear(dim, outputs, **factory)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Positions start as sinusoids, the head at 0; the embedding as torch draws it, the blocks by themselves."""
        table = self.position_embedding.weight
        table.copy_(sinusoids(torch.arange(len(table), device=table.device), table.shape[1]))
        self.embedding.reset_parameters()
        self.over_time.reset_parameters()
        for parameter in self.over_features.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        x: Float[Tensor, "B N F"],
        *,
        key_mask: Bool[Tensor, "B N"] | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The forecast.

        Args:
            x: the past, the newest step last; at most ``max_length`` steps.
            key_mask: True for real steps, of which the last is the newest.
            generator: the source of everything random in the attention.
            return_aux: also return what the layers have to tell, as "loss/blocks.0.attention/..." and so on.

        Returns:
            (B, P, V); with ``return_aux`` a pair of it and a dict of tensors.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
        """
        check_tokens(x, self.inputs)
        check_mask(key_mask, len(x), x.shape[1])
        if x.shape[1] > self.max_length:
            raise ValueError(f"{x.shape[1]} steps, but this model was built with max_length={self.max_length}")
        if key_mask is not None:  # the newest step last, whatever padding there is
            order = key_mask.to(torch.uint8).argsort(dim=-1, stable=True)
            x, key_mask = x.take_along_dim(order[..., None], 1), key_mask.gather(1, order)
            x = x.masked_fill(~key_mask[..., None], 0.0)
        ages = torch.arange(self.max_length - x.shape[1], self.max_length, device=x.device)
        y = self.dropout(self.embedding(x) + self.position_embedding(ages))
        aux: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks):
            y, told = block(y, key_mask=key_mask, generator=generator)
            for name, value in told.items():
                kind, _, rest = name.partition("/")
                aux[f"{kind}/blocks.{number}.attention/{rest}"] = value
        y = self.norm(y)
        if key_mask is not None:
            y = y.masked_fill(~key_mask[..., None], 0.0)
        steps = nn.functional.linear(y.mT, self.over_time.weight[:, ages], self.over_time.bias).mT
        forecast = x[:, -1:, : self.outputs] + self.over_features(steps)
        return (forecast, aux) if return_aux else forecast
