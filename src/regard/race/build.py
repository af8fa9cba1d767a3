"""The model of an entrant: everything but its attention begins with the same numbers for everybody."""

import torch
from torch import Tensor, nn

from regard.models.transformer import TransformerClassifier, TransformerEncoder, TransformerLM
from regard.race.embedding import NgramEmbedding
from regard.race.entrants import YARDSTICK, Entrant
from regard.race.settings import Settings


def build(entrant: Entrant, settings: Settings, num_classes: int) -> nn.Module:
    """The Transformer of an entrant, on the CPU.

    A mechanism draws as many random numbers as it needs, so equal seeds alone would not give equal embeddings. Hence a
    model with the yardstick's attention is made from the same seed, and whatever an entrant has in common with it, by
    name and shape, begins with the same numbers: embeddings, norms, MLPs, and the projections of a layer that has the
    usual ones. A head start by initial weights would decide a short race.

    Bytes enter as n-grams (:class:`NgramEmbedding`), and the learned positions begin as sinusoids, not as noise: a
    short race would end before they mean anything.
    """
    model = _model(entrant, settings, num_classes)
    shared = _model(Entrant(YARDSTICK), settings, num_classes).state_dict()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name in shared and tensor.shape == shared[name].shape:
                tensor.copy_(shared[name])
    return model


def sinusoids(length: int, dim: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5: (sin, cos) of i / 10000^(2k/C), as small as learned positions begin."""
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(0, dim, 2) / dim)
    return 0.02 * 2**0.5 * torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :dim]


def _model(entrant: Entrant, settings: Settings, num_classes: int) -> TransformerEncoder:
    torch.manual_seed(settings.seed)
    sizes = (256, settings.dim, settings.depth, settings.num_heads, settings.length, entrant.name)
    if settings.task == "lm":
        model = TransformerLM(*sizes, **entrant.options)
    else:
        model = TransformerClassifier(*sizes, num_classes=num_classes, **entrant.options)
    torch.manual_seed(settings.seed)
    model.token_embedding = NgramEmbedding(256, settings.dim, settings.ngram)
    with torch.no_grad():
        model.position_embedding.weight.copy_(sinusoids(settings.length, settings.dim))
    return model
