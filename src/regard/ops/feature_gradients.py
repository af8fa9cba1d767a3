"""The backward pass of :func:`regard.ops.feature_sums.attend`: features are made again, none are kept.

Causal, the queries are walked forwards, beside the sums that they met, and the keys backwards, beside the gradient of
the sums that follow them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.ops.feature_sums import Decays, FeatureSums, Inputs, rescaled, weigh
from regard.ops.features import Features, features_backward


class _Given(NamedTuple):
    """What came out of the forward pass, and the gradients of it."""

    out: Tensor
    total: Tensor
    grad_out: Tensor

    def slopes(self, rows: slice) -> Tensor:
        """The gradient of [sum_j w_ij v_j, sum_j w_ij] for some queries, (B, H, T, Dv + 1)."""
        total = self.total[:, :, rows]
        out, slope = (tensor[:, :, rows].to(total.dtype) for tensor in (self.out, self.grad_out))
        return torch.cat((slope, -(slope * out).sum(-1, keepdim=True)), -1).div_(total)


class _Backward:
    """The gradients so far, filled chunk by chunk."""

    def __init__(self, inputs: Inputs, given: _Given, needs_projection: bool) -> None:
        self.inputs, self.given = inputs, given
        self.q, self.k, self.v = (
            tensor.new_empty(*tensor.transpose(1, 2).shape).transpose(1, 2) for tensor in inputs[:3]
        )
        self.projection = torch.zeros_like(inputs.projection, dtype=given.total.dtype) if needs_projection else None

    def queries(self, slope: Tensor, phi: Features, rows: slice) -> None:
        """Take in the gradient of the values of some queries' features."""
        self.q[:, :, rows] = self._through(slope, phi, exponent=False)

    def keys(self, slope: Tensor, phi: Features, value_slope: Tensor, rows: slice) -> None:
        """The same for keys, and the gradient of their values with the column of ones."""
        self.k[:, :, rows] = self._through(slope, phi, exponent=True)
        self.v[:, :, rows] = value_slope[..., :-1]

    def _through(self, slope: Tensor, phi: Features, *, exponent: bool) -> Tensor:
        x, u = features_backward(slope, phi, self.inputs.projection, self.inputs.kind, exponent=exponent)
        if self.projection is not None:
            self.projection += (u.mT @ phi.scaled).sum_to_size(self.projection.shape)
        return x

    def past_keys(self, sums: FeatureSums, slope: Tensor) -> None:
        """Keys that all queries see, from the sums that end with them and the gradient of their state."""
        for rows in self.inputs.seen_chunks():
            phi, values = self.inputs.keys(rows)
            key_slope = weigh(values, phi, sums.exponent) @ slope.mT
            self.keys(key_slope, phi, weigh(phi.value @ slope, phi, sums.exponent), rows)

    def all_seen(self, sums: FeatureSums, slope: Tensor) -> Tensor:
        """Queries that see the sums of all keys: -> the gradient of their state, which is added to ``slope``."""
        for rows in self.inputs.query_chunks():
            phi, slopes = self.inputs.queries(rows), self.given.slopes(rows)
            _add_product(slope, phi.value.mT, slopes)
            self.queries(slopes @ sums.state.mT, phi, rows)
        return slope

    def causal_queries(self, sums: FeatureSums) -> list[Tensor]:
        """Queries in a row, from the sums before the first one: -> the exponent before each chunk, and at the end."""
        exponents = [sums.exponent]
        for rows in self.inputs.query_chunks():
            phi, slopes = self.inputs.queries(rows), self.given.slopes(rows)
            keys, values = self.inputs.keys(self.inputs.own_keys(rows))
            decays = Decays.between(sums.exponent, keys)
            slope = decays.on_past(slopes @ sums.state.mT)
            self.queries(_add_product(slope, decays.on_pairs(slopes @ values.mT), keys.value), phi, rows)
            sums = sums.add(keys, values)
            exponents.append(sums.exponent)
        return exponents

    def causal_keys(self, exponents: list[Tensor], slope: Tensor) -> Tensor:
        """Their keys in reverse, from the gradient of the state at the end: -> that of the state before the first."""
        chunks = list(zip(self.inputs.query_chunks(), exponents, exponents[1:], strict=False))
        for rows, before, after in reversed(chunks):
            phi, slopes = self.inputs.queries(rows).value, self.given.slopes(rows)
            keys, values = self.inputs.keys(self.inputs.own_keys(rows))
            decays = Decays.between(before, keys)
            key_slope = weigh(values, keys, after) @ slope.mT
            _add_product(key_slope, decays.on_pairs(slopes @ values.mT).mT, phi)
            value_slope = weigh(keys.value @ slope, keys, after)
            _add_product(value_slope, decays.on_pairs(phi @ keys.value.mT).mT, slopes)
            self.keys(key_slope, keys, value_slope, self.inputs.own_keys(rows))
            slope = _add_product(rescaled(slope, before, after), phi.mT, decays.on_past(slopes))
        return slope


def _add_product(rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """rows += left right."""
    rows.view(rows.shape[0] * rows.shape[1], *rows.shape[2:]).baddbmm_(left.flatten(0, 1), right.flatten(0, 1))
    return rows


def gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The backward pass.

    Args:
        arguments: those of ``attend``, what it returned, the gradients of its out and state, and whether that of the
            projection is needed.

    Returns:
        The gradients of q, k, v, the projection (empty where it is not needed), and the state before.
    """
    inputs, sums, after = Inputs(*arguments[:8]), FeatureSums(*arguments[8:10]), FeatureSums(*arguments[12:14])
    out, total, grad_out, grad_state, needs_projection = (*arguments[10:12], *arguments[14:])
    found = _Backward(inputs, _Given(out, total, grad_out), needs_projection)
    start, slope = sums.exponent, grad_state.clone(memory_format=torch.contiguous_format)
    with torch.autocast(inputs.q.device.type, enabled=False), torch.no_grad():
        if inputs.causal:
            for rows in inputs.seen_chunks():
                sums = sums.add(*inputs.keys(rows))
            slope = found.causal_keys(found.causal_queries(sums), slope)
        else:
            sums, slope = after, found.all_seen(after, slope)
        found.past_keys(sums, slope)
        slope = rescaled(slope, start, sums.exponent)
    projection = inputs.projection.new_zeros(0) if found.projection is None else found.projection
    return found.q, found.k, found.v, projection.to(inputs.projection.dtype), slope
