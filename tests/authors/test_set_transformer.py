"""The authors' blocks and networks for other sizes, against their multiplications written out."""

import json
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from regard.authors.replay import replay

REPOSITORY = "juho-lee/set_transformer@73432c640ac78140496d6738416c54d32c686d65"


def mab_state(d_q, d_k, d, ln, prefix=""):
    shapes = {"fc_q": (d, d_q), "fc_k": (d, d_k), "fc_v": (d, d_k), "fc_o": (d, d)}
    state = {f"{name}.weight": torch.randn(*shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.randn(d) for name in shapes}
    if ln:
        state |= {f"{name}.{kind}": torch.randn(d) for name in ("ln0", "ln1") for kind in ("weight", "bias")}
    return {f"{prefix}{name}": 0.4 * tensor.double() for name, tensor in state.items()}


def isab_state(d_in, d, m, ln, prefix=""):
    own = {f"{prefix}I": torch.randn(1, m, d).double()}
    return own | mab_state(d, d_in, d, ln, f"{prefix}mab0.") | mab_state(d_in, d, d, ln, f"{prefix}mab1.")


def pma_state(d, k, ln, prefix=""):
    return {f"{prefix}S": torch.randn(1, k, d).double()} | mab_state(d, d, d, ln, f"{prefix}mab.")


def linear_state(d_in, d_out, prefix):
    return {f"{prefix}weight": torch.randn(d_out, d_in).double() * 0.4, f"{prefix}bias": torch.randn(d_out).double()}


def below(state, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def line(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mab(state, x, y, heads):
    q, k, v = line(state, "fc_q", x), line(state, "fc_k", y), line(state, "fc_v", y)
    parts = zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
    o = torch.cat([a + (a @ b.mT / q.shape[-1] ** 0.5).softmax(-1) @ c for a, b, c in parts], -1)
    o = normed(state, "ln0", o)
    return normed(state, "ln1", o + line(state, "fc_o", o).relu())


def normed(state, name, x):
    if f"{name}.weight" not in state:
        return x
    return torch.nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def sab(state, x, heads):
    return mab(below(state, "mab."), x, x, heads)


def isab(state, x, heads):
    middle = mab(below(state, "mab0."), state["I"].expand(len(x), -1, -1), x, heads)
    return mab(below(state, "mab1."), x, middle, heads)


def pma(state, x, heads):
    return mab(below(state, "mab."), state["S"].expand(len(x), -1, -1), x, heads)


def repeated(source, config, state, inputs, call):
    meta = {"mechanism": "set_transformer", "source": f"{REPOSITORY}:{source}", "config": json.dumps(config)}
    meta |= {"call": json.dumps(call), "main_output": "y"}
    given = {f"param/{name}": tensor for name, tensor in state.items()}
    return replay(given | {f"in/{name}": tensor for name, tensor in inputs.items()}, meta)["out/y"]


def points(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("ln", [None, False, True])
def test_the_blocks(ln):
    x, y, switch = points(2, 7, 3), points(2, 4, 5), {} if ln is None else {"ln": ln}
    state = mab_state(3, 5, 8, ln)
    config = {"dim_Q": 3, "dim_K": 5, "dim_V": 8, "num_heads": 4, **switch}
    found = repeated("modules.py:MAB", config, state, {"Q": x, "K": y}, {"args": ["Q", "K"]})
    assert_close(found, mab(state, x, y, 4), rtol=0, atol=1e-12)
    sizes = {"dim_in": 3, "dim_out": 6, "num_heads": 2, **switch}
    state = mab_state(3, 3, 6, ln, "mab.")
    assert_close(
        repeated("modules.py:SAB", sizes, state, {"X": x}, {"args": ["X"]}), sab(state, x, 2), rtol=0, atol=1e-12
    )
    state = isab_state(3, 6, 5, ln)
    found = repeated("modules.py:ISAB", sizes | {"num_inds": 5}, state, {"X": x}, {"args": ["X"]})
    assert_close(found, isab(state, x, 2), rtol=0, atol=1e-12)
    state, z = pma_state(6, 2, ln), points(2, 7, 6)
    config = {"dim": 6, "num_heads": 3, "num_seeds": 2, **switch}
    assert_close(repeated("modules.py:PMA", config, state, {"X": z}, {}), pma(state, z, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("ln", "outputs", "inducing"), [(False, 4, 3), (True, 1, 5)])
def test_the_network_of_the_clusters(ln, outputs, inducing):
    d, x = 8, points(2, 9, 2)
    state = isab_state(2, d, inducing, ln, "enc.0.") | isab_state(d, d, inducing, ln, "enc.1.")
    state |= pma_state(d, outputs, ln, "dec.0.") | linear_state(d, 5, "dec.3.")
    state |= mab_state(d, d, d, ln, "dec.1.mab.") | mab_state(d, d, d, ln, "dec.2.mab.")
    z = isab(below(state, "enc.1."), isab(below(state, "enc.0."), x, 2), 2)
    z = pma(below(state, "dec.0."), z, 2)
    z = sab(below(state, "dec.2."), sab(below(state, "dec.1."), z, 2), 2)
    config = {"dim_input": 2, "num_outputs": outputs, "dim_output": 5, "num_inds": inducing, "dim_hidden": d}
    found = repeated("models.py:SetTransformer", config | {"num_heads": 2, "ln": ln}, state, {"X": x}, {"args": ["X"]})
    assert_close(found, line(below(state, "dec."), "3", z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_network_of_the_point_clouds_drops_axes_of_one(batch):
    d, x = 8, points(batch, 6, 3)
    state = isab_state(3, d, 4, False, "enc.0.") | isab_state(d, d, 4, False, "enc.1.")
    state |= pma_state(d, 1, False, "dec.1.") | linear_state(d, 40, "dec.3.")
    z = pma(below(state, "dec.1."), isab(below(state, "enc.1."), isab(below(state, "enc.0."), x, 4), 4), 4)
    config = {"num_inds": 4, "dim_hidden": d}
    found = repeated("main_pointcloud.py:SetTransformer", config, state, {"X": x}, {"args": ["X"]})
    assert_close(found, line(below(state, "dec."), "3", z).squeeze(), rtol=0, atol=1e-12)


def test_the_network_of_the_maximum():
    x = points(3, 5, 1)
    state = mab_state(1, 1, 64, False, "enc.0.mab.") | mab_state(64, 64, 64, False, "enc.1.mab.")
    state |= pma_state(64, 1, False, "dec.0.") | linear_state(64, 1, "dec.1.")
    z = pma(below(state, "dec.0."), sab(below(state, "enc.1."), sab(below(state, "enc.0."), x, 4), 4), 4)
    found = repeated("max_regression_demo.ipynb:SmallSetTransformer", {}, state, {"x": x}, {"args": ["x"]})
    assert_close(found, line(below(state, "dec."), "1", z).squeeze(-1), rtol=0, atol=1e-9)


def mlp(state, x):
    for number in range(0, len(state), 2):
        x = line(state, str(number), x)
        x = x.relu() if f"{number + 2}.weight" in state else x
    return x


def mlp_state(widths, prefix):
    found = {}
    for number, (before, after) in enumerate(pairwise(widths)):
        found |= linear_state(before, after, f"{prefix}{2 * number}.")
    return found


def test_the_networks_that_only_pool():
    x = points(3, 5, 2)
    state = mlp_state([2, 8, 8, 8, 8], "enc.") | mlp_state([8, 8, 8, 8, 12], "dec.")
    config = {"dim_input": 2, "num_outputs": 4, "dim_output": 3, "dim_hidden": 8}
    expected = mlp(below(state, "dec."), mlp(below(state, "enc."), x).mean(1)).view(3, 4, 3)
    assert_close(repeated("models.py:DeepSet", config, state, {"X": x}, {}), expected, rtol=0, atol=1e-12)
    state = mlp_state([1, 64, 64, 64, 64], "enc.") | mlp_state([64, 64, 1], "dec.")
    z = mlp(below(state, "enc."), x[..., :1])
    pooled = {"max": z.amax(1), "mean": z.mean(1), "sum": z.sum(1)}
    for pool, value in pooled.items():
        source = "max_regression_demo.ipynb:SmallDeepSet"
        found = repeated(source, {"pool": pool}, state, {"x": x[..., :1]}, {})
        assert_close(found, mlp(below(state, "dec."), value), rtol=0, atol=1e-9)
