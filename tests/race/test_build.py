import pytest
import torch

from regard.race.build import build, sinusoids
from regard.race.embedding import NgramEmbedding
from regard.race.entrants import Entrant, choose, obstacle
from regard.race.settings import Settings
from regard.tasks.classification import Classification
from regard.tasks.documents import Document
from regard.tasks.labelled import Labelled, split_labelled
from regard.tasks.language import LanguageModelling
from regard.tasks.split import Split


def settings(**changes):
    return Settings(**{"steps": 1, "dim": 16, "num_heads": 2, "length": 32, "depth": 2, **changes})


def made(entrant, given):
    """The model of an entrant on the smallest text or texts."""
    if given.task == "classify":
        texts = tuple(Document(str(number), bytes(40)) for number in range(6))
        found = Labelled(texts, ("a", "b") * 3)
        task = Classification(found, split_labelled(found), length=given.length, batch=1, seed=0)
    else:
        text = (Document("text", bytes(100)),)
        task = LanguageModelling(Split(text, text, text, ""), length=given.length, batch=1, seed=0)
    return build(entrant, given, task)


def everybody():
    return [entrant.label for entrant in choose(settings(mechanisms=("all",))).entrants]


@pytest.mark.parametrize("name", everybody())
@pytest.mark.parametrize("task", ["lm", "classify"])
def test_shared_parts_begin_alike_whatever_the_attention_draws(name, task):
    given = settings(task=task)
    if reason := obstacle(Entrant(name), Entrant(name).arguments(given), causal=task == "lm"):
        pytest.skip(reason)
    full, model = (made(Entrant(entrant), given).state_dict() for entrant in ("full", name))
    shared = [key for key in full if ".attention." not in key]
    assert len(shared) > 20
    for key in shared:
        assert torch.equal(full[key], model[key]), key
    torch.rand(1000)
    again = made(Entrant(name), given).state_dict()
    assert all(torch.equal(again[key], model[key]) for key in model)


@pytest.mark.parametrize("name", ["local", "longformer", "sparse_transformer", "linear_transformer"])
def test_the_usual_projections_begin_alike(name):
    full, other = (made(Entrant(entrant), settings()).state_dict() for entrant in ("full", name))
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        key = f"blocks.1.attention.{projection}.weight"
        assert torch.equal(full[key], other[key]), key


def test_the_seed_decides():
    one, two = (made(Entrant("full"), settings(seed=seed)).state_dict() for seed in (0, 1))
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
        model = made(entrant, settings()).eval()
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
