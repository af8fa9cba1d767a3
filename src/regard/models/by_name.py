"""Weights of a plain network in one with mechanisms: what fits is taken by name, the rest is told in words."""

from collections.abc import Mapping

from torch import Tensor, nn

from regard.registry import Layer


def load_by_name(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Take what has a place in a model from the weights of a plainer one, e.g. torchvision's or timm's.

    For a network of the same parts ``load_state_dict`` does, strictly. Here mechanisms that the file does not know, and
    classes of another number, stay as they were drawn.

    Args:
        model: changed in place.
        weights: names and tensors, as torchvision and timm save them.

    Returns:
        What did not fit, a sentence a part: what stays as drawn, and what of the file was left.

    Raises:
        ValueError: nothing fits.

    Example:
        >>> from regard.models import Plug, ResNet
        >>> axial = Plug(mechanism="axial", stages=(4,), options={"num_heads": 2})
        >>> plain, ours = (ResNet((1, 1, 1, 1), plugs=plugs, widths=(4, 4, 4, 4)) for plugs in ([], [axial]))
        >>> for remark in load_by_name(ours, plain.state_dict()):
        ...     print(remark)
        layer4.0.conv2 (axial) stays as drawn: the file has nothing for it
        layer4.0.conv2.weight of the file is left: it has no place here
    """
    ours = model.state_dict()
    fits = {name: value for name, value in weights.items() if name in ours and ours[name].shape == value.shape}
    if not fits:
        raise ValueError(
            f"none of the {len(weights)} tensors fits: this model's names are {', '.join(list(ours)[:3])}, ..., and "
            f"the file's {', '.join(list(weights)[:3])}, ..."
        )
    model.load_state_dict(fits, strict=False)
    remarks = dict[str, None]()  # in order, each once
    for name, value in ours.items():
        if name in weights and name not in fits:
            remarks[f"{name} stays as drawn: it is {_shape(weights[name])} in the file and {_shape(value)} here"] = None
        elif name not in weights and not name.endswith("num_batches_tracked"):  # files of old versions of torch lack it
            remarks[f"{_part(model, name)} stays as drawn: the file has nothing for it"] = None
    return [*remarks, *(f"{name} of the file is left: it has no place here" for name in weights if name not in ours)]


def _part(model: nn.Module, name: str) -> str:
    """The mechanism to which a tensor belongs, or else the module."""
    steps = name.split(".")[:-1]
    for count in range(1, len(steps) + 1):
        path = ".".join(steps[:count])
        part = model.get_submodule(path)
        if isinstance(part, Layer):
            return f"{path} ({part.mechanism})"
    return ".".join(steps)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
