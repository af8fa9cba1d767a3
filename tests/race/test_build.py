import pytest
import torch

import regard
from regard.race.build import build, sinusoids
from regard.race.embedding import NgramEmbedding
from regard.race.entrants import Entrant, choose
from regard.race.settings import Settings


def settings(**changes):
    return Settings(**{"steps": 1, "dim": 16, "num_heads": 2, "length": 32, "depth": 2, **changes})


def everybody():
    return [entrant.label for entrant in choose(settings(mechanisms=("all",))).entrants]


@pytest.mark.parametrize("name", everybody())
@pytest.mark.parametrize("task", ["lm", "classify"])
def test_shared_parts_begin_alike_whatever_the_attention_draws(name, task):
    if task == "lm" and not regard.card(name).causal:
        pytest.skip("cannot be causal")
    given = settings(task=task)
    full, model = (build(Entrant(entrant), given, 256).state_dict() for entrant in ("full", name))
    shared = [key for key in full if ".attention." not in key]
    assert len(shared) > 20
    for key in shared:
        assert torch.equal(full[key], model[key]), key
    torch.rand(1000)
    again = build(Entrant(name), given, 256).state_dict()
    assert all(torch.equal(again[key], model[key]) for key in model)


@pytest.mark.parametrize("name", ["local", "longformer", "sparse_transformer", "linear_transformer"])
def test_the_usual_projections_begin_alike(name):
    full, other = (build(Entrant(entrant), settings(), 256).state_dict() for entrant in ("full", name))
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        key = f"blocks.1.attention.{projection}.weight"
        assert torch.equal(full[key], other[key]), key


def test_the_seed_decides():
    one, two = (build(Entrant("full"), settings(seed=seed), 256).state_dict() for seed in (0, 1))
    assert not torch.equal(one["token_embedding.weight"], two["token_embedding.weight"])


def test_ngrams_are_a_causal_sum_of_tables():
    embedding = NgramEmbedding(256, 4, 3)
    tokens = torch.tensor([[7, 8, 9, 7]])
    zero, one, two = embedding.weight, embedding.before[0].weight, embedding.before[1].weight
    expected = torch.stack([zero[7], zero[8] + one[7], zero[9] + one[8] + two[7], zero[7] + one[9] + two[8]])
    assert torch.allclose(embedding(tokens)[0], expected)
    plain = NgramEmbedding(256, 4, 1)
    assert torch.equal(plain(tokens)[0], plain.weight[tokens[0]])
    assert NgramEmbedding(256, 4, 9)(tokens).shape == (1, 4, 4)


def test_no_model_of_the_race_sees_the_future():
    for entrant in choose(settings()).entrants:
        model = build(entrant, settings(), 256).eval()
        tokens = torch.randint(256, (1, 32))
        changed = tokens.clone()
        changed[0, 20:] = (changed[0, 20:] + 1) % 256
        with torch.no_grad():
            one, two = model(tokens), model(changed)
        assert torch.allclose(one[:, :20], two[:, :20], atol=1e-6), entrant.label
        assert not torch.allclose(one[:, 20:], two[:, 20:], atol=1e-3)


def test_positions_begin_as_sinusoids():
    table = sinusoids(50, 7)
    assert table.shape == (50, 7)
    angle = torch.tensor(3 / 10_000 ** (2 / 7))
    assert table[3, 2:4].tolist() == pytest.approx([0.02 * 2**0.5 * float(f(angle)) for f in (torch.sin, torch.cos)])
