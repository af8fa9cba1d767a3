"""The Axial Transformer: an exact autoregressive model of images, pixel by pixel in raster order.

Ho et al. 2019, arXiv:1912.12180, sections 3.1 to 3.3, as in google-research/axial. Blocks are residual and pre-norm,
x + W_o attention(norm(x)), then x + W_2 f(W_1 norm(x)) with f(z) = z sigmoid(1.702 z), each along one axis. For one
plane of values, with embeddings h, positions p (one table for rows, one for columns) and any conditioning added to p::

    u = outer(h + p)                                   in turn within rows, and within columns up to the pixel
    r = inner(shift_right(h) + shift_down(u) + p)      within rows up to the pixel
    logits = W norm(r)

so that a pixel depends on exactly those before it: rows above through u, pixels to the left through h. Several channels
are modelled one after the other by the same weights: those before, as values / 255, and a one-hot of the present one go
through a convolution and unmasked blocks of their own, and become the conditioning (section 3.3).

Training takes one random channel of each image, see :meth:`AxialTransformer.bits_per_dim`. Time O(N^(3/2) C) for N
pixels. Sampling one pixel at a time runs the outer blocks once a row and the inner ones once a pixel, from memories:
each pixel and row is computed once. Like the authors', it starts with branches and logits close to 0.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from regard.models.axial_plane import PlaneDecoder, Positions, alternating, start


class ChannelEncoder(nn.Module):
    """What the channels before the present one tell about each of its pixels.

    Args:
        height, width, channels, dim, num_heads: sizes.
        layers: the number of blocks, which come in pairs.
        options: those of :class:`AxialBlock`.
    """

    def __init__(
        self, height: int, width: int, channels: int, dim: int, num_heads: int, layers: int, **options: Any
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {name: options.get(name) for name in ("device", "dtype")}
        self.input = nn.Conv2d(2 * channels, dim, 3, padding=1, **factory)
        self.positions = Positions(height, width, dim, **factory)
        self.blocks = alternating(dim, num_heads, layers, causal=False, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The convolution normal with variance 1 / fan-in; blocks and positions start by themselves."""
        start(self.input)

    def forward(
        self, x: Int[Tensor, "B channels H W"], channel: Int[Tensor, " B"], cond: Tensor | None = None
    ) -> Float[Tensor, "B H W C"]:
        """The conditioning for channel ``channel[b]`` of each image; it and those behind it are not looked at."""
        number = torch.arange(x.shape[1], device=x.device)
        before, present = (mask[:, :, None, None] for mask in (number < channel[:, None], number == channel[:, None]))
        dtype = self.input.weight.dtype
        planes = torch.cat((torch.where(before, x, 0).to(dtype) / 255, present.expand(x.shape).to(dtype)), 1)
        h = self.input(planes).movedim(1, -1) + self.positions()
        h = h if cond is None else h + cond
        for block in self.blocks:
            h = block(h)
        return h


class AxialTransformer(nn.Module):
    """Autoregressive images of values 0 ... K - 1; see the head of this file.

    Args:
        height, width: of the images.
        channels: None: images (B, H, W) of one plane; a number: images (B, channels, H, W).
        num_values: K.
        dim, num_heads: C and H.
        exterior_layers: blocks for the channels before, even; needed with ``channels`` only.
        outer_layers, inner_layers: blocks for the rows above, even, and for the pixels to the left.
        mlp_ratio: the hidden width of the networks, in multiples of C.
        dropout: on all branches.

    Raises:
        ValueError: blocks that do not come in pairs, or images of another size.

    Example:
        >>> model = AxialTransformer(4, 5, channels=3, num_values=8, dim=16, num_heads=2, exterior_layers=2,
        ...                          outer_layers=2, inner_layers=1)
        >>> model(torch.randint(8, (2, 3, 4, 5))).shape
        torch.Size([2, 3, 4, 5, 8])
        >>> model.eval().sample(model.gumbel(2)).shape
        torch.Size([2, 3, 4, 5])
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int | None = None,
        num_values: int = 256,
        dim: int = 1536,
        num_heads: int = 16,
        *,
        exterior_layers: int = 8,
        outer_layers: int = 8,
        inner_layers: int = 8,
        mlp_ratio: float = 1,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if outer_layers % 2 or exterior_layers % 2:
            raise ValueError(f"outer_layers={outer_layers}, exterior_layers={exterior_layers}: pairs, so even numbers")
        options: dict[str, Any] = {"mlp_ratio": mlp_ratio, "dropout": dropout, "device": device, "dtype": dtype}
        self.shape = (height, width) if channels is None else (channels, height, width)
        self.num_values = num_values
        self.decoder = PlaneDecoder(height, width, num_values, dim, num_heads, outer_layers, inner_layers, **options)
        self.encoder = None
        if channels is not None:
            self.encoder = ChannelEncoder(height, width, channels, dim, num_heads, exterior_layers, **options)

    def forward(self, x: Int[Tensor, "B *shape"], cond: Float[Tensor, "B H W C"] | None = None) -> Tensor:
        """Logits (B, H, W, K) or (B, channels, H, W, K) of every value, each from those before it.

        Args:
            x: images of whole numbers below K.
            cond: what else is known about each pixel, of all channels.

        Raises:
            ValueError: images of another size.
        """
        self._check(x.shape)
        if self.encoder is None:
            return self.decoder(x, cond)
        channels = self.shape[0]
        present = torch.arange(channels, device=x.device).repeat(len(x))
        repeated = None if cond is None else cond.repeat_interleave(channels, 0)
        return self.channel_logits(x.repeat_interleave(channels, 0), present, repeated).unflatten(0, (-1, channels))

    def channel_logits(
        self, x: Int[Tensor, "B channels H W"], channel: Int[Tensor, " B"], cond: Tensor | None = None
    ) -> Float[Tensor, "B H W K"]:
        """Logits of one channel of each image, the one that training drew for it.

        Raises:
            ValueError: a model of one plane, or images of another size.
        """
        self._check(x.shape)
        if self.encoder is None:
            raise ValueError("this model was built for images of one plane: build it with channels=")
        plane = x.take_along_dim(channel[:, None, None, None], 1)[:, 0]
        return self.decoder(plane, self.encoder(x, channel, cond))

    def bits_per_dim(
        self,
        x: Int[Tensor, "B *shape"],
        cond: Tensor | None = None,
        *,
        generator: Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The mean of -log2 p(value): in training of one channel of each image, drawn at random, else of all values.

        Args:
            x, cond: as in ``forward``.
            generator: draws the channels.
        """
        if self.encoder is None or not self.training:
            logits = self(x, cond)
        else:
            channel = torch.randint(self.shape[0], (len(x),), device=x.device, generator=generator)
            logits, x = self.channel_logits(x, channel, cond), x.take_along_dim(channel[:, None, None, None], 1)[:, 0]
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.flatten(0, -2).to(wide), x.flatten()) / math.log(2)

    def gumbel(
        self, batch: int, temperature: float = 1.0, *, generator: Generator | None = None
    ) -> Float[Tensor, "B *shape K"]:
        """Noise with which argmax(logits + noise) draws from softmax(logits / temperature), for :meth:`sample`."""
        weight = self.decoder.output.weight
        noise = torch.empty(batch, *self.shape, self.num_values, device=weight.device, dtype=weight.dtype)
        return -noise.exponential_(generator=generator).log() * temperature

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "B *shape K"], cond: Float[Tensor, "B H W C"] | None = None, *, fast: bool = True
    ) -> Int[Tensor, "B *shape"]:
        """Images drawn in raster order, channel by channel: each value is argmax(logits + noise).

        Args:
            noise: from :meth:`gumbel`, or zeros for the likeliest values.
            cond: as in ``forward``.
            fast: from memories; otherwise all is computed again for every pixel. The images are the same.

        Raises:
            ValueError: noise of another size.
        """
        self._check(noise.shape[:-1])
        if noise.shape[-1] != self.num_values:
            raise ValueError(f"noise for {noise.shape[-1]} values, but this model has num_values={self.num_values}")
        draw = self.decoder.draw if fast else self.decoder.draw_slowly
        if self.encoder is None:
            return draw(noise, cond)
        x = torch.zeros(noise.shape[:-1], dtype=torch.long, device=noise.device)
        for number in range(self.shape[0]):
            channel = torch.full((len(x),), number, device=x.device)
            x[:, number] = draw(noise[:, number], self.encoder(x, channel, cond))
        return x

    def _check(self, shape: tuple[int, ...]) -> None:
        if tuple(shape[1:]) != self.shape:
            raise ValueError(f"images of shape {tuple(shape)}, but this model was built for (batch, *{self.shape})")
