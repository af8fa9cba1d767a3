"""IDSIA/lmtool-fwp and fla in other configurations than those recorded, against second statements of what they do."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.authors import find
from regard.authors.replay import replay
from regard.registry import UnsupportedError

BLOCKS = "IDSIA/lmtool-fwp@0159201:src/utils/cuda_fast_weight_layer.py"
RULES = "fla-org/flash-linear-attention@bc3b101:fla/ops/delta_rule/naive.py"


def loop(q, k, v, beta, state):
    """(B, H, N, D); beta (B, H, N, 1 or Dv)."""
    outs = []
    for i in range(q.shape[2]):
        old = torch.einsum("bhd,bhdv->bhv", k[:, :, i], state)
        state = state + torch.einsum("bhd,bhv->bhdv", k[:, :, i], beta[:, :, i] * (v[:, :, i] - old))
        outs.append(torch.einsum("bhd,bhdv->bhv", q[:, :, i], state))
    return torch.stack(outs, 2), state


def theirs(h, state, *, heads, width, pre_norm, normalise, eps, features):
    def norm(x):
        return F.layer_norm(x, x.shape[-1:], state["layer_norm.weight"], state["layer_norm.bias"])

    h = norm(h) if pre_norm else h
    split = (h @ state["qkvb_net.weight"].T).view(*h.shape[:2], heads, 3 * width + 1).permute(1, 2, 0, 3)
    q, k, v, beta = split.split((width, width, width, 1), -1)
    q, k = (features(t) / features(t).sum(-1, keepdim=True) for t in (q, k))
    out, _ = loop(q, k, v, beta.sigmoid(), q.new_zeros(h.shape[1], heads, q.shape[-1], width))
    out = out / width**0.5
    if normalise:
        out = out / ((k.cumsum(2) * q).sum(-1, keepdim=True) + eps)
    y = h + out.permute(2, 0, 1, 3).flatten(2) @ state["o_net.weight"].T
    return y if pre_norm else norm(y)


def dpfp(rolls):
    def features(x):
        u = torch.cat((x.relu(), (-x).relu()), -1)
        return torch.cat([u * u.roll(r, -1) for r in range(1, rolls + 1)], -1)

    return features


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("skip", [True, False, None])
@pytest.mark.parametrize("kind", ["DPFP", "Linear"])
def test_blocks(pre_norm, skip, kind):
    heads, width, dim, rolls = 3, 5, 16, 3
    state = {
        "qkvb_net.weight": torch.randn(heads * (3 * width + 1), dim).double(),
        "o_net.weight": torch.randn(dim, heads * width).double(),
        "layer_norm.weight": torch.randn(dim).double(),
        "layer_norm.bias": torch.randn(dim).double(),
    }
    config = {"n_head": heads, "d_model": dim, "d_head": width, "dropout": 0.1, "eps": 1e-3, "pre_lnorm": pre_norm}
    config |= {"n_roll": rolls} if kind == "DPFP" else {}
    config |= {} if skip is None else {"skip_attn_normalization": skip}
    h = torch.randn(9, 2, dim).double()
    meta = {"mechanism": "delta_rule", "source": f"{BLOCKS}:CudaFastWeight{kind}TransformerLayer"}
    meta |= {"config": json.dumps(config), "call": '{"forward": "h"}'}
    found = replay({f"param/{name}": t for name, t in state.items()} | {"in/h": h, "in/cotangent": h}, meta)
    expected = theirs(
        h,
        state,
        heads=heads,
        width=width,
        pre_norm=pre_norm,
        normalise=kind == "DPFP" if skip is None else not skip,
        eps=1e-3,
        features=dpfp(rolls) if kind == "DPFP" else lambda x: F.elu(x) + 1,
    )
    assert_close(found["out/out"], expected, rtol=0, atol=1e-10)
    assert found["grad/qkvb_net.weight"].abs().sum(1).all(), "every row of q, k, v and beta has a gradient"


@pytest.mark.parametrize("channels", [None, 1, 6])
@pytest.mark.parametrize("name", ["delta_rule_recurrence", "delta_rule_chunkwise"])
def test_recurrences(channels, name):
    q, k, v = (torch.randn(2, 3, 20, width).double() for width in (4, 4, 6))
    k = F.normalize(k, dim=-1)
    beta = torch.rand(2, 3, 20, channels or 1).double()
    first = torch.randn(2, 3, 4, 6).double()
    importer = find("delta_rule", f"{RULES}:{name}")
    inputs = {"q": q, "k": k, "v": v, "beta": beta if channels else beta[..., 0], "initial_state": first}
    found = importer.call(importer.module(**importer.arguments({"dk": 4, "scale": "dk**-0.5"})), inputs, {})
    start = first if name == "delta_rule_recurrence" else 0 * first
    expected = loop(q / 2, k, v, beta, start)
    assert_close((found["out"], found["final_state"]), expected, rtol=0, atol=1e-11)


def test_what_it_cannot_do_is_refused():
    importer = find("delta_rule", f"{BLOCKS}:CudaFastWeightDPFPTransformerLayer")
    module = importer.module(**importer.arguments({"n_head": 2, "d_model": 8, "d_head": 4}))
    with pytest.raises(UnsupportedError, match=r"DeltaRule\.stream"):
        importer.call(module, {"h": torch.randn(5, 2, 8), "mems": torch.randn(1)}, {})
    with pytest.raises(UnsupportedError, match="cannot load"):
        find("delta_rule", f"{BLOCKS}:CudaFastWeightSumPerformerLayer")
