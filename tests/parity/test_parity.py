"""The authors' numbers: every recorded case, outputs and gradients, repeated by our modules."""

from pathlib import Path

import pytest

from regard.verify.cases import read
from regard.verify.comparison import RECORDED, Limits, repeat
from tests.parity.replay import replay

CASES = sorted((Path(__file__).parent / "data").rglob("*.safetensors"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_replay_gives_the_authors_numbers(path):
    comparison = repeat(*read(path))
    assert not comparison.complaint


def test_the_limits_are_those_that_were_agreed():
    assert Limits(outputs=1e-5, gradients=5e-5) == RECORDED


def test_replay_never_reads_what_was_recorded():
    tensors, meta = read(CASES[0])
    spoilt = {name: t * 0 if name.startswith(("out/", "grad/")) else t for name, t in tensors.items()}
    clean, again = replay(tensors, meta), replay(spoilt, meta)
    assert clean.keys() == again.keys()
    assert all(bool((clean[name] == again[name]).all()) for name in clean)


def test_there_are_cases_of_every_kind():
    assert len(CASES) >= 13
    assert {path.parent.name for path in CASES} >= {
        "multi_head",
        "sparse_transformer",
        "longformer",
        "linear_transformer",
    }
