"""The authors' numbers: every recorded case, outputs and gradients, repeated by our modules."""

from pathlib import Path

import pytest
from safetensors import safe_open

from tests.parity.replay import replay

CASES = sorted((Path(__file__).parent / "data").rglob("*.safetensors"))
TOLERANCE = {"out": 1e-5, "grad": 5e-5}


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_replay_gives_the_authors_numbers(path):
    with safe_open(path, "pt") as file:
        tensors, meta = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    recorded = {name: t for name, t in tensors.items() if name.startswith(("out/", "grad/"))}
    found = replay({name: t for name, t in tensors.items() if name not in recorded}, meta)

    main = meta.get("main_output", "").removeprefix("out/")
    required = {f"out/{main}" if main else name for name in recorded if name.startswith("out/")}
    assert required | {name for name in recorded if name.startswith("grad/")} <= found.keys()
    for name, expected in recorded.items():
        if name in found:
            assert found[name].shape == expected.shape, name
            error = (found[name].double() - expected.double()).abs().max()
            limit = TOLERANCE[name.split("/")[0]] * max(1.0, float(expected.double().abs().max()))
            assert float(error) <= limit, f"{name} is off by {float(error):.2e}, allowed are {limit:.2e}"


def test_replay_never_reads_what_was_recorded():
    with safe_open(CASES[0], "pt") as file:
        tensors, meta = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
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
