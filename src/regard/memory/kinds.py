"""What is carried from one token to the next: caches of keys and values, windows, sums.

Every memory is a named tuple of tensors, hence a pytree, whose tensors all have the batch as their first dimension.
Appending returns a new memory and leaves the old one as it was; only :class:`StaticCache` is overwritten.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class KeyValueCache(NamedTuple):
    """All keys and values so far.

    Attributes:
        key: (B, G, M, D).
        value: (B, G, M, Dv).
    """

    key: Float[Tensor, "B G M D"]
    value: Float[Tensor, "B G M Dv"]

    @classmethod
    def start(
        cls, batch: int, heads: int, head_dim: int, value_dim: int, *, device: Any = None, dtype: Any = None
    ) -> "KeyValueCache":
        """An empty cache."""
        return cls(
            *(torch.zeros(batch, heads, 0, width, device=device, dtype=dtype) for width in (head_dim, value_dim))
        )

    def append(self, key: Float[Tensor, "B G N D"], value: Float[Tensor, "B G N Dv"]) -> "KeyValueCache":
        """A new cache that ends with these N tokens."""
        return KeyValueCache(
            torch.cat((self.key, key.to(self.key.dtype)), 2), torch.cat((self.value, value.to(self.value.dtype)), 2)
        )

    def truncate(self, length: int) -> "KeyValueCache":
        """The cache as it was after ``length`` tokens."""
        return KeyValueCache(self.key[:, :, :length], self.value[:, :, :length])


class StaticCache(NamedTuple):
    """A cache of fixed size whose tensors are overwritten, so that a compiled step never sees a new shape.

    Attributes:
        key: (B, G, L, D), L = the longest sequence.
        value: (B, G, L, Dv).
        length: (B,), the slots in use; it is returned new, not overwritten.
    """

    key: Float[Tensor, "B G L D"]
    value: Float[Tensor, "B G L Dv"]
    length: Int[Tensor, " B"]

    @classmethod
    def start(
        cls,
        batch: int,
        heads: int,
        max_length: int,
        head_dim: int,
        value_dim: int,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> "StaticCache":
        """An empty cache with room for ``max_length`` tokens."""
        key, value = (
            torch.zeros(batch, heads, max_length, width, device=device, dtype=dtype) for width in (head_dim, value_dim)
        )
        return cls(key, value, torch.zeros(batch, device=device, dtype=torch.long))

    def filled(self) -> Bool[Tensor, "B L"]:
        """True for the slots in use."""
        return torch.arange(self.key.shape[2], device=self.key.device) < self.length[:, None]

    def append(self, key: Float[Tensor, "B G N D"], value: Float[Tensor, "B G N Dv"]) -> "StaticCache":
        """Write N tokens behind those in use, into the same tensors.

        Raises:
            ValueError: no room for N more, or autograd would have to follow the overwriting.
        """
        room, n = self.key.shape[2], key.shape[2]
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise ValueError(
                "a memory made with static= is overwritten, which autograd cannot follow: "
                "stream under torch.no_grad(), or make the memory without static="
            )
        # the check reads a value: a device would have to wait, and there the write itself fails
        if not torch.compiler.is_compiling() and self.length.device.type == "cpu" and int(self.length.max()) + n > room:
            raise ValueError(
                f"{int(self.length.max())} tokens and {n} more, but this memory was made with static={room}"
            )
        slot = (self.length[:, None] + torch.arange(n, device=self.length.device))[:, None, :, None]
        for room_for, new in ((self.key, key), (self.value, value)):
            room_for.scatter_(2, slot.expand_as(new), new.to(room_for.dtype))
        return StaticCache(self.key, self.value, self.length + n)

    def truncate(self, length: int) -> "StaticCache":
        """The cache as it was after ``length`` tokens; the later ones are written over."""
        return self._replace(length=self.length.clamp(max=length))


class RollingWindow(NamedTuple):
    """The last W keys and values, the newest in the last slot.

    Attributes:
        key: (B, G, W, D).
        value: (B, G, W, Dv).
        length: (B,), all tokens seen so far, also those that have left the window.
    """

    key: Float[Tensor, "B G W D"]
    value: Float[Tensor, "B G W Dv"]
    length: Int[Tensor, " B"]

    @classmethod
    def start(
        cls,
        batch: int,
        heads: int,
        window: int,
        head_dim: int,
        value_dim: int,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> "RollingWindow":
        """A window that has seen nothing."""
        return cls(*StaticCache.start(batch, heads, window, head_dim, value_dim, device=device, dtype=dtype))

    def append(
        self, key: Float[Tensor, "B G N D"], value: Float[Tensor, "B G N Dv"]
    ) -> "tuple[Float[Tensor, 'B G W+N D'], Float[Tensor, 'B G W+N Dv'], Bool[Tensor, 'B W+N'], RollingWindow]":
        """The window followed by N new tokens, which of its slots hold a token, and the new window.

        Query r of the N stands at slot r + W: bottom-right alignment, as :func:`regard.attend` has it by default.
        """
        window, n = self.key.shape[2], key.shape[2]
        keys = torch.cat((self.key, key.to(self.key.dtype)), 2)
        values = torch.cat((self.value, value.to(self.value.dtype)), 2)
        real = torch.arange(window + n, device=key.device) >= window - self.length[:, None]
        # a view would keep a long prompt alive
        return keys, values, real, RollingWindow(keys[:, :, n:].clone(), values[:, :, n:].clone(), self.length + n)

    def truncate(self, length: int) -> "RollingWindow":
        """The window as it was after ``length`` tokens.

        Raises:
            ValueError: it held tokens then that have left it since.
        """
        window, longest = self.key.shape[2], int(self.length.max())
        if length < longest and longest > window:
            raise ValueError(
                f"after {length} tokens this window of {window} held some that have left it since, {longest} have been "
                "seen: keep the memory from that point, stream never overwrites it"
            )
        taken = (self.length - length).clamp(min=0)
        slot = (torch.arange(window, device=taken.device) - taken[:, None]).clamp(min=0)[:, None, :, None]
        key, value = (tensor.take_along_dim(slot, 2) for tensor in (self.key, self.value))
        return RollingWindow(key, value, self.length.clamp(max=length))


class LinearState(NamedTuple):
    """The running sums of linear attention; their size does not depend on the length.

    Attributes:
        state: (B, H, D, Dv), the sum of phi(k_j) v_j^T.
        normaliser: (B, H, D), the sum of phi(k_j).
    """

    state: Float[Tensor, "B H D Dv"]
    normaliser: Float[Tensor, "B H D"]

    @classmethod
    def start(
        cls, batch: int, heads: int, head_dim: int, value_dim: int, *, device: Any = None, dtype: Any = None
    ) -> "LinearState":
        """Sums over nothing, in float32 at least."""
        dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        state = torch.zeros(batch, heads, head_dim, value_dim, device=device, dtype=dtype)
        return cls(state, state[..., 0].clone())


class LayerMemory(NamedTuple):
    """What a layer around a core carries along.

    Attributes:
        core: the core's own memory.
        position: (B,), the position of the next token.
    """

    core: Any
    position: Int[Tensor, " B"]


class ModelMemory(NamedTuple):
    """What a model carries along.

    Attributes:
        layers: the memory of each layer, in order.
        position: (B,), the position of the next token.
    """

    layers: tuple[Any, ...]
    position: Int[Tensor, " B"]
