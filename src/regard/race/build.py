"""The model of an entrant: everything but its attention begins with the same numbers for everybody."""

import torch
from torch import Tensor, nn

from regard.models.transformer import TransformerEncoder
from regard.race.embedding import NgramEmbedding
from regard.race.entrants import YARDSTICK, Entrant
from regard.race.settings import Settings
from regard.tasks.task import Task


def build(entrant: Entrant, settings: Settings, task: Task) -> nn.Module:
    """The Transformer of an entrant, on the CPU.

    A mechanism draws as many random numbers as it needs, so equal seeds alone would not give equal embeddings. Hence a
    model with the yardstick's attention is made from the same seed, and whatever an entrant has in common with it, by
    name and shape, begins with the same numbers: embeddings, norms, MLPs, and the projections of a layer that has the
    usual ones. A head start by initial weights would decide a short race.

    Tokens enter as n-grams (:class:`NgramEmbedding`), and the learned positions begin as sinusoids, not as noise: a
    short race would end before they mean anything.
    """
    model = _model(entrant, settings, task)
    shared = _model(Entrant(YARDSTICK), settings, task).state_dict()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name in shared and tensor.shape == shared[name].shape:
                tensor.copy_(shared[name])
    return model


def sinusoids(length: int, dim: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5: (sin, cos) of i / 10000^(2k/C), as small as learned positions begin."""
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(0, dim, 2) / dim)
    return 0.02 * 2**0.5 * torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :dim]


def _model(entrant: Entrant, settings: Settings, task: Task) -> nn.Module:
    torch.manual_seed(settings.seed)
    model = task.model(settings.dim, settings.depth, settings.num_heads, entrant.name, **entrant.options)
    if isinstance(model, TransformerEncoder):
        torch.manual_seed(settings.seed)
        model.token_embedding = NgramEmbedding(task.vocab_size, settings.dim, settings.ngram)
        with torch.no_grad():
            model.position_embedding.weight.copy_(sinusoids(task.length, settings.dim))
    return model
