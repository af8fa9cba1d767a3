"""The contract itself: for every test in it there is a fault that makes it fail."""

import functools
import tempfile
from pathlib import Path

import pytest
import torch

import regard
import regard.layers
import regard.map_layers
import regard.pair_layers
from regard.layers import MultiHead
from regard.map_layers import MapLayer
from regard.mechanisms.linear.linear_transformer import LinearTransformer
from regard.mechanisms.multi_head import ScaledDotProduct
from regard.mechanisms.pairs.co_attention import CoAttention
from regard.pair_layers import PairLayer, WeighingPairLayer
from regard.registry import UnsupportedError
from tests.contract import test_export as export
from tests.contract import test_lifecycle as lifecycle
from tests.contract import test_map_layers as map_layers
from tests.contract import test_maps as maps
from tests.contract import test_masks as masks
from tests.contract import test_memories as memories
from tests.contract import test_pairs as pairs
from tests.contract import test_rules as rules
from tests.contract import test_shapes as shapes
from tests.contract.cases import CASES


def around(cls, name, change):
    """Replace a method by ``change(original, self, ...)``."""
    original = getattr(cls, name)

    @functools.wraps(original)
    def method(self, *arguments, **options):
        return change(functools.partial(original, self), self, *arguments, **options)

    return cls, name, method


def instead(owner, name, function):
    return owner, name, function


def adds(cls, value):
    return around(cls, "forward", lambda forward, self, *a, **k: forward(*a, **k) + value)


def drops(cls, *names, method="forward"):
    def change(original, self, *arguments, **options):
        return original(*arguments, **{name: value for name, value in options.items() if name not in names})

    return around(cls, method, change)


def with_extra(make):
    def change(init, self, *arguments, **options):
        init(*arguments, **options)
        self.extra = make()

    return around(MultiHead, "__init__", change)


def times_extra(forward, self, *arguments, **options):
    return forward(*arguments, **options) * self.extra


def traced_otherwise(forward, self, x, **options):
    return forward(x, **options) * (2 if torch.compiler.is_compiling() else 1)


def uncausal(forward, self, *arguments, **options):
    self.causal = False
    out = forward(*arguments, **options)
    self.causal = True
    return out


def starts_large(init, self, *arguments, **options):
    init(*arguments, **options)
    with torch.no_grad():
        for parameter in self.parameters():
            parameter.mul_(100)


def strangely_named(forward, self, *arguments, return_aux=False, **options):
    y = forward(*arguments, **options)
    return (y, {"entropy": y.sum()}) if return_aux else y


def strangely_strided(forward, self, x, **options):
    return forward(x.flatten(2).mT.contiguous().mT.unflatten(2, x.shape[2:]), **options)


def of_maps(change):
    return around(MapLayer, "forward", lambda forward, self, x, *a, **k: change(forward(x, *a, **k), x))


def of_pairs(change):
    return around(PairLayer, "forward", lambda forward, self, *a, **k: change(forward(*a, **k)))


def nothing_from_nothing(forward, self, x, context, key_mask=None, **options):
    y = forward(x, context, key_mask=key_mask, **options)
    return y if key_mask is None else y + (~key_mask.any(-1)).to(y).log().relu()[:, None, None] / 0


def unchecked(admit, self, x, context, *arguments, **options):
    return x, context


def eats_options(create, name, **options):
    return create(name, **{key: value for key, value in options.items() if key != "no_such_option"})


def refuses_bluntly(create, name, **options):
    if "attn_drop" in options:
        raise UnsupportedError("no")
    return create(name, **options)


def nothing(*arguments, **options):
    return None


def same(x, *arguments):
    return x


def sums_up(stream, self, q, k, v, memory):
    out, memory = stream(q, k, v, memory)
    return out, memory._replace(normaliser=memory.normaliser.sum(0, keepdim=True))


def memory_of(memory, index):
    return torch.utils._pytree.tree_map(lambda tensor: tensor[index], memory)


def in_a_folder(contract, case):
    with tempfile.TemporaryDirectory() as folder:
        contract(case, Path(folder))


def another(self, memo):
    return regard.create("linear_transformer", dim=12, num_heads=3, causal=True).eval()


FAULTS = {
    "looks ahead": (
        [around(LinearTransformer, "forward", uncausal)],
        lambda case: rules.test_rule(case, "causality"),
    ),
    "no causal sample": (
        [instead(rules, "LAYERS", [case for case in CASES if str(case) == "linear_transformer-0-layer"])],
        lambda case: rules.test_every_claim_is_put_to_the_test(case.name),
    ),
    "a number from the graph": (
        [around(MultiHead, "forward", lambda forward, self, x, **o: forward(x, **o) * float(x.sum() > -1e9))],
        rules.test_compiles_for_inference,
    ),
    "returns float32": (
        [around(MultiHead, "forward", lambda forward, self, *a, **k: forward(*a, **k).float())],
        shapes.test_a_layer_keeps_shape_and_dtype,
    ),
    "a parameter where nobody asked": (
        [with_extra(lambda: torch.nn.Parameter(torch.zeros(1)))],
        shapes.test_parameters_are_made_where_asked,
    ),
    "half a gradient": (
        [around(LinearTransformer, "forward", lambda forward, self, q, k, v, **o: forward(q, k, v.detach(), **o))],
        shapes.test_gradcheck,
    ),
    "forgets to reset": (
        [instead(MultiHead, "reset_parameters", nothing)],
        shapes.test_reset_parameters_draws_everything_as_the_constructor_does,
    ),
    "starts too large": (
        [around(MultiHead, "__init__", starts_large)],
        shapes.test_initialisation_keeps_signals_in_range,
    ),
    "crops the context": (
        [around(LinearTransformer, "forward", lambda f, self, q, k, v, **o: f(q, k[:, :, -9:], v[:, :, -9:]))],
        lambda case: masks.test_cross_attention(case, "padding right"),
    ),
    "padding gets in": ([instead(regard.layers, "hide", same)], masks.test_padding_may_hold_anything),
    "documents mix": ([drops(MultiHead, "segments")], masks.test_documents_do_not_see_each_other),
    "something from nothing": (
        [adds(LinearTransformer, 1e-3)],
        lambda case: masks.test_a_query_that_sees_nothing_gives_zero_and_gets_no_gradient(core_of(case)),
    ),
    "a layer from nothing": (
        [adds(LinearTransformer, 1e-3)],
        masks.test_an_empty_sequence_gives_what_the_layer_makes_of_zero,
    ),
    "copies another": (
        [instead(MultiHead, "__deepcopy__", another)],
        lambda case: lifecycle.test_a_copy_computes_the_same(case, lifecycle.copy.deepcopy),
    ),
    "unsaved state": (
        [with_extra(lambda: torch.rand(())), around(MultiHead, "forward", times_extra)],
        lifecycle.test_a_state_dict_carries_everything,
    ),
    "a length in the graph": (
        [around(MultiHead, "forward", lambda forward, self, x, **o: forward(x, **o) * int(str(int(x.shape[1]))))],
        export.test_an_exported_graph_computes_the_same_at_other_sizes,
    ),
    "other randomness": ([drops(ScaledDotProduct, "generator")], lifecycle.test_a_generator_decides_every_draw),
    "eats options": (
        [instead(regard, "create", functools.partial(eats_options, regard.create))],
        lifecycle.test_unknown_options_are_refused,
    ),
    "refuses bluntly": (
        [instead(regard, "create", functools.partial(refuses_bluntly, regard.create))],
        lambda case: lifecycle.test_refusals_say_why(case, "attn_drop"),
    ),
    "takes any mask": (
        [instead(regard.layers, "check_mask", nothing)],
        lambda case: lifecycle.test_wrong_masks_are_refused(case, "key_mask"),
    ),
    "takes any width": ([instead(regard.layers, "check_tokens", nothing)], lifecycle.test_wrong_widths_are_refused),
    "streams what it cannot": (
        [instead(LinearTransformer, "memory", nothing)],
        lambda case: lifecycle.test_streaming_is_refused_where_it_would_be_wrong(free_of(case)),
    ),
    "a sum for all sequences": (
        [around(LinearTransformer, "stream", sums_up)],
        memories.test_a_memory_holds_tensors_with_the_batch_first,
    ),
    "beams mixed up": (
        [instead(memories, "reorder", lambda memory, index: memory_of(memory, index.flip(0)))],
        memories.test_beams_branch_off_without_disturbing_each_other,
    ),
    "forgets in a file": (
        [instead(memories, "load", lambda path, empty: empty)],
        lambda case: in_a_folder(memories.test_a_memory_survives_a_file, case),
    ),
    "keeps the graph": ([instead(memories, "detach", same)], memories.test_a_detached_memory_has_no_graph),
    "takes nothing back": ([instead(memories, "truncate", same)], memories.test_tokens_are_taken_back_or_refused),
    "takes any memory": (
        [instead(regard.layers, "check_memory", nothing)],
        memories.test_a_foreign_memory_is_refused,
    ),
    "weighs padding": (
        [drops(MultiHead, "key_mask", method="weigh")],
        lambda case: maps.test_an_exact_map_is_what_the_layer_does(case, True),
    ),
    "hears from padding": ([drops(MultiHead, "key_mask")], maps.test_every_layer_has_a_jacobian),
    "hears from masked pixels": (
        [drops(MapLayer, "key_mask")],
        lambda case: maps.test_every_layer_on_maps_has_a_jacobian(named("axial-0-layer")),
    ),
    "tells strange names": (
        [around(MultiHead, "forward", strangely_named)],
        lifecycle.test_aux_is_a_flat_dict_of_named_tensors,
    ),
    "maps in float32": ([of_maps(lambda y, x: y.float())], map_layers.test_any_size_in_any_dtype),
    "no map of one pixel": (
        [of_maps(lambda y, x: y if y[0, 0].numel() > 1 else y / 0)],
        map_layers.test_a_map_of_one_pixel_works_or_is_refused_in_words,
    ),
    "channels first": (
        [instead(regard.map_layers, "like_format", lambda y, x: y.contiguous())],
        map_layers.test_channels_last_stays_channels_last,
    ),
    "masked pixels get in": (
        [instead(regard.map_layers, "hide_pixels", same)],
        lambda case: map_layers.test_padding_of_maps_may_hold_anything(named("kronecker-0-layer")),
    ),
    "takes any mask of a map": (
        [instead(regard.map_layers, "_check_pixels", nothing)],
        lambda case: map_layers.test_wrong_masks_of_maps_are_refused(case, "key_mask"),
    ),
    "takes any map": (
        [instead(regard.map_layers, "_check_map", nothing)],
        map_layers.test_what_is_no_map_of_this_width_is_refused,
    ),
    "overlooks a second map": (
        [around(MapLayer, "forward", lambda forward, self, x, context=None, **o: forward(x, **o))],
        map_layers.test_a_second_map_is_refused,
    ),
    "ignores a second map": (
        [around(MapLayer, "forward", lambda forward, self, x, context=None, **o: forward(x, **o))],
        lambda case: map_layers.test_a_second_map_may_have_another_size(named("kronecker-0-layer")),
    ),
    "a strange gradient": (
        [around(MapLayer, "forward", strangely_strided)],
        map_layers.test_the_gradient_of_a_single_map_passes_a_norm_before_it,
    ),
    "maps start too large": ([of_maps(lambda y, x: 1e4 * y)], map_layers.test_maps_start_in_range),
    "maps tell strange names": (
        [around(MapLayer, "forward", strangely_named)],
        map_layers.test_aux_of_maps_is_a_flat_dict_of_named_tensors,
    ),
    "pairs in float32": (
        [of_pairs(lambda y: y.float())],
        lambda case: pairs.test_two_sequences_of_any_length_in_any_dtype(named("luong-0-layer")),
    ),
    "padding of a pair gets in": (
        [instead(regard.pair_layers, "hide", same)],
        lambda case: pairs.test_padding_of_either_sequence_changes_nothing(named("luong-0-layer"), "right"),
    ),
    "a number from nothing": (
        [around(PairLayer, "forward", nothing_from_nothing)],
        lambda case: pairs.test_nothing_to_look_at_is_no_disaster(named("luong-0-layer")),
    ),
    "weighs padding of a pair": (
        [drops(WeighingPairLayer, "key_mask", method="weigh")],
        lambda case: pairs.test_an_exact_map_of_a_pair_is_what_the_layer_does(named("luong-2-layer"), True),
    ),
    "takes any pair": (
        [around(PairLayer, "admit", unchecked)],
        lambda case: pairs.test_a_pair_that_does_not_fit_is_refused(named("luong-0-layer")),
    ),
    "takes any mask of a pair": (
        [instead(regard.pair_layers, "check_mask", nothing)],
        lambda case: pairs.test_wrong_masks_of_pairs_are_refused(named("luong-0-layer")),
    ),
    "pairs tell strange names": (
        [around(PairLayer, "forward", strangely_named)],
        lambda case: pairs.test_aux_of_pairs_is_a_flat_dict_of_named_tensors(named("luong-0-layer")),
    ),
    "a length of a pair in the graph": (
        [of_pairs(lambda y: y * int(str(int(y.shape[1]))))],
        lambda case: export.test_an_exported_graph_without_masks_computes_the_same(named("luong-0-layer")),
    ),
    "pairs of maps in float32": (
        [around(CoAttention, "forward", lambda forward, self, *a, **k: tuple(y.float() for y in forward(*a, **k)))],
        lambda case: pairs.test_two_maps_of_any_size_in_any_dtype(named("co_attention-0-layer")),
    ),
    "masked pixels of a pair get in": (
        [instead(regard.map_layers, "hide_pixels", same)],
        lambda case: pairs.test_padding_of_either_map_changes_nothing(named("co_attention-0-layer")),
    ),
    "a side in the graph": (
        [of_maps(lambda y, x: y * int(str(int(x.shape[2]))))],
        lambda case: export.test_an_exported_graph_computes_the_same_at_other_sizes(named("axial-0-layer")),
    ),
    "a file of something else": (
        [around(MultiHead, "forward", traced_otherwise)],
        export.test_an_onnx_file_computes_the_same_at_other_sizes,
    ),
    "a graph for all sides": (
        [around(MapLayer, "forward", lambda forward, self, x, **o: x)],
        lambda case: export.test_a_graph_of_one_size_is_no_more_than_that(named("criss_cross-0-layer")),
    ),
}
OF_MAPS = {fault for fault, (_, contract) in FAULTS.items() if contract.__module__ == map_layers.__name__} | {
    "masked pixels get in",
    "takes any mask of a map",
    "ignores a second map",
}
DROPPING = ("other randomness",)


def named(text):
    return next(case for case in CASES if str(case) == text)


def core_of(case):
    return named(f"{case.name}-{case.index}-core")


def free_of(case):
    return named(f"{case.name}-0-layer")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(fault, monkeypatch):
    patches, contract = FAULTS[fault]
    case = named("multi_head-1-layer" if fault in DROPPING else "linear_transformer-1-layer")
    case = named("axial-0-layer") if fault in OF_MAPS else case
    contract(case)  # passes without the fault
    for patch in patches:
        monkeypatch.setattr(*patch, raising=False)
    with pytest.raises((Exception, pytest.fail.Exception)):
        contract(case)


def test_no_test_is_left_out():
    tests = {
        name
        for module in (rules, shapes, masks, lifecycle, export, maps, memories, map_layers, pairs)
        for name in vars(module)
        if name.startswith("test_")
    }
    exempt = {  # they need another kind of case
        "test_a_context_is_refused",
        "test_an_exact_map_of_pixels_is_what_the_layer_does",
        "test_masks_are_refused_where_they_mean_nothing",
        "test_unknown_names_name_the_nearest",
        "test_what_has_no_onnx_file_has_none",
    }
    used = {name for _, contract in FAULTS.values() for name in (contract.__name__, *contract.__code__.co_names)}
    assert tests - exempt == tests & used
