"""A plain Transformer on images over any mechanism by name: the body in which mechanisms on maps are compared.

The Vision Transformer's (Dosovitskiy et al. 2020, arXiv:2010.11929), kept as a map: patches of p x p pixels become one
place each, with learned positions that begin as sinusoids, then blocks x + attention(norm(x)), x + mlp(norm(x)) and a
last norm. Mechanisms on maps take the map as it is; those on sequences its places row by row. Images may have any size:
their last patches are filled up with zeros, and positions are interpolated from those of the usual size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from regard.models.on_maps import map_attention
from regard.models.transformer_2017 import sinusoids
from regard.registry import Layer

Told = dict[str, Tensor]


class MapBlock(nn.Module):
    """One attention and one MLP, each added to what it reads.

    Args:
        attention: a layer on maps, (B, C, H, W) -> (B, C, H, W).
        dim: C.
        mlp_ratio: the hidden width of the MLP, in multiples of C.
        dropout: on both branches.
    """

    def __init__(
        self,
        attention: Layer,
        dim: int,
        *,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = int(dim * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(dim, **factory), nn.LayerNorm(dim, **factory)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(dim, hidden, **factory), nn.GELU(), nn.Linear(hidden, dim, **factory))
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The MLP Xavier-uniform with biases 0; norms start as the identity, the attention as its paper says."""
        for parameter in self.mlp.parameters():
            _ = nn.init.xavier_uniform_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)

    def forward(
        self, x: Float[Tensor, "B h w C"], key_mask: Tensor | None = None, generator: Generator | None = None
    ) -> tuple[Float[Tensor, "B h w C"], Told]:
        """x, features last so that norms and matrices read rows of memory; and what the attention has to tell."""
        asked = self.norm1(x).movedim(-1, 1)
        y, aux = self.attention(asked, key_mask=key_mask, generator=generator, return_aux=True)
        if y.shape != asked.shape:
            made, name = f"{tuple(y.shape)} of {tuple(asked.shape)}", self.attention.mechanism
            raise ValueError(f"{name} makes {made}: what is added to its input must have its shape")
        x = x + self.dropout(y.movedim(1, -1))
        return x + self.dropout(self.mlp(self.norm2(x))), aux


class MapTransformer(nn.Module):
    """What :class:`MapClassifier` and :class:`MapSegmenter` share; they say in ``read_out`` what comes out.

    Args:
        channels: of the images.
        dim, depth, num_heads: C, blocks, H.
        side: of usual images, in pixels: (height, width) or one number for both.
        mechanism: the registry name of the attention.
        patch: p.
        mlp_ratio: the hidden width of the MLPs, in multiples of ``dim``.
        dropout: on the embeddings and on both branches of each block.
        mechanism_options: what else :func:`map_attention` shall pass on.

    Raises:
        UnsupportedError: something that the mechanism cannot do.
        ValueError: sizes that are not positive.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        depth: int,
        num_heads: int,
        side: int | tuple[int, int],
        mechanism: str = "full",
        *,
        patch: int = 2,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mechanism_options: Any,
    ) -> None:
        super().__init__()
        sides = (side, side) if isinstance(side, int) else side
        if min(*sides, patch, channels) < 1:
            raise ValueError(f"side={side}, patch={patch} and channels={channels} must be positive")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        height, width = (-(-length // patch) for length in sides)
        self.channels, self.patch = channels, patch
        self.stem = nn.Conv2d(channels, dim, patch, stride=patch, **factory)
        self.position_embedding = nn.Parameter(torch.empty(1, dim, height, width, **factory))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        sizes: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "max_length": height * width}
        for _ in range(depth):
            attention = map_attention(mechanism, **sizes, **factory, **mechanism_options)
            self.blocks.append(MapBlock(attention, dim, mlp_ratio=mlp_ratio, dropout=dropout, **factory))
        self.norm = nn.LayerNorm(dim, **factory)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Positions start as sinusoids, half of the features for the row and half for the column; the rest as it is."""
        _, dim, height, width = self.position_embedding.shape
        for along, places, features in ((2, height, slice(0, dim // 2)), (3, width, slice(dim // 2, dim))):
            table = sinusoids(torch.arange(places), len(range(dim)[features])).mT
            self.position_embedding[:, features] = table[:, :, None] if along == 2 else table[:, None]

    def forward(
        self,
        images: Float[Tensor, "B F H W"],
        *,
        key_mask: Bool[Tensor, "B H W"] | None = None,
        generator: Generator | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, Told]:
        """What the class says comes out of images of any size.

        Args:
            images: the features of each pixel.
            key_mask: True for real pixels; a patch with one of them takes part, the others count as 0.
            generator: the source of everything random in the attention.
            return_aux: also return what the layers have to tell, as "loss/blocks.0.attention/..." and so on.

        Raises:
            ValueError, TypeError: shapes or masks that do not fit.
        """
        if images.ndim != 4 or images.shape[1] != self.channels or 0 in images.shape:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (batch, {self.channels}, H, W)")
        real = None if key_mask is None else _patches(key_mask, images, self.patch)
        x = self._embed(images if key_mask is None else images.masked_fill(~key_mask[:, None], 0.0))
        aux: Told = {}
        for number, block in enumerate(self.blocks):
            x, told = block(x, real, generator)
            for name, value in told.items():
                kind, _, rest = name.partition("/")
                aux[f"{kind}/blocks.{number}.attention/{rest}"] = value
        y = self.read_out(self.norm(x), real, images.shape[2], images.shape[3])
        return (y, aux) if return_aux else y

    def read_out(
        self, x: Float[Tensor, "B h w C"], real: Bool[Tensor, "B h w"] | None, height: int, width: int
    ) -> Tensor:
        """What comes out of the normalised features of all patches.

        Args:
            x: the features.
            real: patches that take part.
            height, width: of the images.
        """
        raise NotImplementedError(f"{type(self).__name__} has no read_out")

    def _embed(self, images: Tensor) -> Float[Tensor, "B h w C"]:
        """Patches with their positions, features last."""
        bottom, right = (-length % self.patch for length in images.shape[2:])
        x = self.stem(F.pad(images, (0, right, 0, bottom)) if bottom or right else images)
        places = self.position_embedding
        if places.shape[2:] != x.shape[2:]:
            places = F.interpolate(places, x.shape[2:], mode="bilinear")
        return self.dropout((x + places).movedim(1, -1).contiguous())


class MapClassifier(MapTransformer):
    """One of several classes an image: logits (B, num_classes) of the mean over patches.

    Args and errors are those of :class:`MapTransformer`.

    Example:
        >>> model = MapClassifier(1, 12, 2, 3, 28, "axial", num_classes=4)
        >>> model(torch.randn(2, 1, 28, 28)).shape, model(torch.randn(2, 1, 9, 31)).shape
        (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        depth: int,
        num_heads: int,
        side: int | tuple[int, int],
        mechanism: str = "full",
        *,
        num_classes: int,
        **options: Any,
    ) -> None:
        super().__init__(channels, dim, depth, num_heads, side, mechanism, **options)
        factory = {key: options[key] for key in ("device", "dtype") if key in options}
        self.classes = nn.Linear(dim, num_classes, **factory)

    def read_out(self, x: Tensor, real: Tensor | None, height: int, width: int) -> Float[Tensor, "B K"]:
        """Logits of the mean; an image without real pixels has mean 0."""
        if real is None:
            return self.classes(x.mean((1, 2)))
        return self.classes(x.masked_fill(~real[..., None], 0.0).sum((1, 2)) / real.sum((1, 2))[:, None].clamp(min=1))


class MapSegmenter(MapTransformer):
    """One of several classes a pixel: logits (B, num_classes, H, W), those of a patch all from its features.

    Args and errors are those of :class:`MapTransformer`.

    Example:
        >>> model = MapSegmenter(3, 12, 2, 3, 32, "full", patch=4, num_classes=5)
        >>> model(torch.randn(2, 3, 32, 32)).shape, model(torch.randn(2, 3, 9, 31)).shape
        (torch.Size([2, 5, 32, 32]), torch.Size([2, 5, 9, 31]))
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        depth: int,
        num_heads: int,
        side: int | tuple[int, int],
        mechanism: str = "full",
        *,
        num_classes: int,
        **options: Any,
    ) -> None:
        super().__init__(channels, dim, depth, num_heads, side, mechanism, **options)
        factory = {key: options[key] for key in ("device", "dtype") if key in options}
        self.classes = nn.Linear(dim, num_classes * self.patch**2, **factory)

    def read_out(self, x: Tensor, real: Tensor | None, height: int, width: int) -> Float[Tensor, "B K H W"]:
        """Logits of every pixel; what stands at pixels that are not real means nothing."""
        return F.pixel_shuffle(self.classes(x).movedim(-1, 1), self.patch)[..., :height, :width]


def _patches(key_mask: Tensor, images: Tensor, patch: int) -> Bool[Tensor, "B h w"]:
    """Patches with a real pixel."""
    expected = (images.shape[0], *images.shape[2:])
    if key_mask.dtype != torch.bool:
        raise TypeError(f"key_mask is {key_mask.dtype}: pass Bool, True for real pixels, e.g. key_mask.bool()")
    if key_mask.shape != expected:
        raise ValueError(f"key_mask has shape {tuple(key_mask.shape)}, but the pixels are {expected}: (batch, H, W)")
    pixels = key_mask[:, None].float()
    return F.max_pool2d(pixels, patch, patch, ceil_mode=True)[:, 0] > 0
