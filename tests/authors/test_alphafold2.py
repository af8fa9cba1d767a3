"""Configurations of the authors' modules that no recorded case has, against the same mathematics under their names."""

import json

import pytest
import torch
from torch.testing import assert_close

from regard.authors import load
from regard.authors.replay import replay
from regard.registry import UnsupportedError
from tests.authors import alphafold2_haiku as haiku

MODULES = "google-deepmind/alphafold@c77e5d2:alphafold/model/modules.py"


def replayed(cls, config, params, inputs, main="y"):
    """-> what the replay finds for these parameters and inputs, in float64."""
    tensors = {f"param/{name}": tensor for name, tensor in params.state.items()}
    tensors |= {f"in/{name}": tensor for name, tensor in inputs.items()}
    meta = {"mechanism": "alphafold2", "source": f"{MODULES}:{cls}", "config": json.dumps(config), "main_output": main}
    return replay(tensors, meta)


@pytest.mark.parametrize(
    ("extra", "first", "fused"), [(True, False, False), (False, True, True), (True, True, True)], ids=str
)
def test_blocks(extra, first, fused):
    config, given = haiku.block_config(first=first, fused=fused), haiku.alignment()
    params = haiku.Params("extra_msa_stack" if extra else "evoformer_iteration")
    msa, pair = haiku.evoformer_iteration(params, *given.values(), config, extra=extra)
    found = replayed("EvoformerIteration", config | {"is_extra_msa": extra}, params, given, "sum_rep")
    assert_close(found["out/msa"], msa, rtol=0, atol=1e-10)
    assert_close(found["out/pair"], pair, rtol=0, atol=1e-10)
    assert_close(found["out/sum_rep"], torch.cat((msa.flatten(), pair.flatten())), rtol=0, atol=1e-10)


@pytest.mark.parametrize("gating", [True, False])
@pytest.mark.parametrize("cls", ["MSAColumnAttention", "MSAColumnGlobalAttention"])
def test_columns(cls, gating):
    config = {"gating": gating, "num_head": 2, "orientation": "per_column", "key_dim": 6}
    given, params = haiku.alignment(), haiku.Params("some/path/name")
    part = haiku.column_attention if cls == "MSAColumnAttention" else haiku.global_column_attention
    expected = part(params, "", given["msa"], given["msa_mask"], config)
    params.state = {name.replace("name//", "name/").replace("//", "/"): t for name, t in params.state.items()}
    params.state = {"//".join(name.rsplit("/", 1)): t for name, t in params.state.items()}
    found = replayed(cls, config, params, {"msa": given["msa"], "mask": given["msa_mask"]})
    assert_close(found["out/y"], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("orientation", ["per_row", "per_column"])
def test_triangle_attention(orientation):
    config = {"gating": True, "num_head": 2, "orientation": orientation, "key_dim": 8, "value_dim": 4}
    given, params = haiku.alignment(), haiku.Params("x")
    expected = haiku.triangle_attention(params, "t", given["pair"], given["pair_mask"], config)
    found = replayed("TriangleAttention", config, params, {"pair": given["pair"], "mask": given["pair_mask"]})
    assert_close(found["out/y"], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("equation", ["ikc,jkc->ijc", "jkc,ikc->ijc", "kic,kjc->ijc", "kjc,kic->ijc"])
def test_triangle_multiplication(equation, fused):
    config = {"equation": equation, "fuse_projection_weights": fused, "num_intermediate_channel": 5}
    given, params = haiku.alignment(), haiku.Params("x")
    expected = haiku.triangle_multiplication(params, "t", given["pair"], given["pair_mask"], config)
    found = replayed("TriangleMultiplication", config, params, {"pair": given["pair"], "mask": given["pair_mask"]})
    assert_close(found["out/y"], expected, rtol=0, atol=1e-10)


def test_transition():
    given, params, config = haiku.alignment(), haiku.Params("x"), {"num_intermediate_factor": 1.25}
    expected = haiku.transition(params, "t", given["pair"], config)
    found = replayed("Transition", config, params, {"act": given["pair"], "mask": given["pair_mask"]})
    assert_close(found["out/y"], expected, rtol=0, atol=1e-10)


def test_attention_itself():
    given, params = haiku.alignment(), haiku.Params("x")
    config = {"gating": False, "num_head": 2, "key_dim": 4, "value_dim": 6}
    query, mask, bias = given["pair"], given["msa_mask"], torch.randn(2, 5, 5, dtype=torch.float64)
    query, keys = query[:4], given["msa"]
    expected = haiku.attention(params, "attention", query, keys, mask, config, bias)
    inputs = {"q_data": query, "m_data": keys, "mask": mask[:, None, None], "nonbatched_bias": bias}
    assert_close(replayed("Attention", config, params, inputs)["out/y"], expected, rtol=0, atol=1e-10)


def test_global_attention_itself():
    given, params, config = haiku.alignment(), haiku.Params("x"), {"gating": True, "num_head": 3}
    expected = haiku.global_attention(params, "attention", given["msa"], given["msa_mask"], config)
    inputs = {"q_data": given["msa"], "q_mask": given["msa_mask"][..., None]}
    assert_close(replayed("GlobalAttention", config, params, inputs)["out/y"], expected, rtol=0, atol=1e-10)


def test_template_pair_stack():
    config = {"num_block": 2, **haiku.block_config()}
    given, states, pair = haiku.alignment(), [], haiku.alignment()["pair"]
    for number in range(2):
        params = haiku.Params("template_pair_stack/__layer_stack_no_state", seed=number)
        pair = haiku.template_pair_block(params, pair, given["pair_mask"], config)
        states.append(params.state)
    params.state = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    found = replayed("TemplatePairStack", config, params, {"pair_act": given["pair"], "pair_mask": given["pair_mask"]})
    assert_close(found["out/y"], pair, rtol=0, atol=1e-10)


def block_params(config, *, extra=False):
    params = haiku.Params("evoformer_iteration")
    haiku.evoformer_iteration(params, *haiku.alignment().values(), config, extra=extra)
    return params.state


def test_rates_of_dropout_are_taken_over():
    config = haiku.block_config()
    config["pair_transition"]["dropout_rate"] = 0.5
    drops = load("alphafold2", f"{MODULES}:EvoformerIteration", config, block_params(config)).drops
    assert (drops.row, drops.starting, drops.pair_transition, drops.column) == (0.15, 0.25, 0.5, 0.0)


def changed(part, **options):
    config = haiku.block_config()
    config[part] |= options
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("triangle_attention_ending_node", orientation="per_row"), "dropout is one draw.*per_column"),
        (changed("msa_row_attention_with_pair_bias", shared_dropout=False), "shared_dropout=true"),
        (changed("msa_column_attention", orientation="per_row"), "orientation='per_row' does not work"),
        (changed("msa_column_attention", gating=False), "gating=False, but the weights"),
        (changed("msa_column_attention", num_head=3), "num_head=3, but queries of width 8"),
        (changed("triangle_multiplication_incoming", equation="ijc,jkc->ikc"), "no triangle multiplication"),
        ({**haiku.block_config(), "is_extra_msa": True}, "is_extra_msa=True, but the weights"),
    ],
)
def test_what_does_not_fit_is_refused(config, message):
    with pytest.raises(UnsupportedError, match=message):
        load("alphafold2", f"{MODULES}:EvoformerIteration", config, block_params(haiku.block_config()))


def test_masks_of_other_numbers_are_refused():
    config, given = haiku.block_config(), haiku.alignment()
    params = haiku.Params("evoformer_iteration")
    haiku.evoformer_iteration(params, *given.values(), config)
    with pytest.raises(UnsupportedError, match="1 where something takes part"):
        replayed("EvoformerIteration", config, params, given | {"pair_mask": 0.5 * given["pair_mask"]}, "sum_rep")
