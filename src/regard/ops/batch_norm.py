"""Batch normalisation of tokens or pixels, whose statistics are those of real ones only."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TokenBatchNorm(nn.BatchNorm1d):
    """torch's BatchNorm1d on (..., C), where tokens that a mask leaves out enter neither mean nor variance.

    In training every token of the batch meets every other through them, later ones too; in evaluation none does.

    Example:
        >>> norm, keep = TokenBatchNorm(1, affine=False), torch.tensor([[True, True, False]])
        >>> norm(torch.tensor([[[1.0], [3.0], [900.0]]]), keep)[keep].flatten().round().tolist()
        [-1.0, 1.0]
    """

    def forward(self, input: Float[Tensor, "*B C"], mask: Bool[Tensor, "*B"] | None = None) -> Float[Tensor, "*B C"]:
        """Normalise each feature; ``mask``: True for tokens that count, the others become anything finite."""
        flat = input.flatten(0, -2)
        if mask is None or not self.training:
            return super().forward(flat).view(input.shape)
        return self._masked(flat, mask.flatten()).view(input.shape)

    def _masked(self, x: Float[Tensor, "T C"], mask: Bool[Tensor, " T"]) -> Float[Tensor, "T C"]:
        real, count = mask[:, None], mask.sum()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = wide.masked_fill(~real, 0.0).sum(0) / count.clamp(min=1)
        centred = (wide - mean).masked_fill(~real, 0.0)
        variance = centred.square().sum(0) / count.clamp(min=1)
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach(), count)
        y = centred * torch.rsqrt(variance + self.eps)
        return (y if not self.affine else torch.addcmul(self.bias, y, self.weight)).to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, the variance as that of a sample; a batch of padding moves nothing."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(count > 0)
        step = 1.0 / self.num_batches_tracked.clamp(min=1) if self.momentum is None else self.momentum
        for running, found in (
            (self.running_mean, mean),
            (self.running_var, variance * count / (count - 1).clamp(min=1)),
        ):
            moved = running + step * (found.to(running.dtype) - running)
            running.copy_(torch.where(count > 0, moved, running))


class MapBatchNorm(TokenBatchNorm):
    """torch's BatchNorm1d to 3d on maps (B, C, *grid), where pixels that a mask leaves out enter no statistic.

    Example:
        >>> norm, keep = MapBatchNorm(1, affine=False), torch.tensor([[True, True, False]])
        >>> norm(torch.tensor([[[1.0, 3.0, 900.0]]]), keep)[0, 0, :2].round().tolist()
        [-1.0, 1.0]
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes will do."""

    def forward(
        self, input: Float[Tensor, "B C *grid"], mask: Bool[Tensor, "B *grid"] | None = None
    ) -> Float[Tensor, "B C *grid"]:
        """Normalise each feature; ``mask``: True for pixels that count, the others become anything finite."""
        if mask is None or not self.training:
            # for a single map, torch 2.13 reads a gradient with features last as if it lay otherwise, on the CPU
            lines = input.flatten(2) if input.shape[0] == 1 and input.ndim > 3 else input
            return nn.BatchNorm1d.forward(self, lines).view_as(input)
        pixels = input.movedim(1, -1)
        return self._masked(pixels.flatten(0, -2), mask.flatten()).view(pixels.shape).movedim(-1, 1)
