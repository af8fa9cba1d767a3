"""Our own layers: any with projections of queries, keys, values and output, such as those of a ``TransformerLM``."""

import inspect
from typing import Any, cast

from torch import Tensor, nn

from regard.registry import Layer
from regard.swap.conventions.convention import Convention
from regard.swap.reading import Call, Reading, of_layer

_HEARD = ("x", "context", "key_mask", "query_mask", "segments")


class OwnLayers(Convention):
    """See the head of this file; the new layer stands there by itself."""

    title = "regard"

    def read(self, path: str, module: nn.Module) -> Reading | str | None:
        if not isinstance(module, Layer) or module.card.data != "sequence":
            return None
        return of_layer(module)

    def dress(self, attention: Layer, reading: Reading, module: nn.Module) -> nn.Module:
        return attention

    def understand(self, stand_in: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        given = inspect.signature(stand_in.forward).bind(*args, **kwargs).arguments
        settings = {name: value for name, value in given.items() if name not in _HEARD and value is not None}
        settings.pop("return_aux", None)
        heard = {name: given.get(name) for name in _HEARD}
        return Call(**heard, settings=settings)  # pyright: ignore[reportArgumentType]

    def attention(self, stand_in: nn.Module) -> Layer:
        return cast(Layer, stand_in)

    def probe(self, module: nn.Module, x: Tensor, causal: bool) -> Tensor:
        return module(x)

    def reference(self, module: nn.Module, exact: Layer, reading: Reading) -> nn.Module:
        """The layer that stands there: it may be of any mechanism, and has its maps itself."""
        return module
