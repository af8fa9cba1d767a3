import json
import warnings

import pytest
import torch
from torch import nn

import regard
from regard.inspect.check import RULES, check, run_rule
from regard.inspect.inputs import make_subject
from regard.registry import Card
from tests.inspect import toys

N = 16
MASKED = {"mask_name": "src_key_padding_mask", "mask_true": "drop"}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.delitem(RULES, "compile")


def tokens(batch=2, n=N, dim=12):
    return torch.randn(batch, n, dim)


def failed(module, inputs=None, rules=None, **options):
    """The names of the rules that fail; all but the slow one by default."""
    if inputs is None and not hasattr(module, "card"):
        inputs = tokens()
    subject = make_subject(module, inputs, **options)
    rules = [rule for rule in RULES if rule != "compile"] if rules is None else rules
    return {rule for rule in rules if run_rule(rule, subject).verdict == "FAIL"}


def test_a_sound_module_passes_every_rule():
    report = check(toys.Sound(), tokens(), causal="strict")
    assert {row.name: row.verdict for row in report.rows} == dict.fromkeys(RULES, "pass")
    assert report.ok
    report.raise_if_failed()


FUTURE = {"causality", "prefix", "padding right", "padding left", "memory = full"}
CAUGHT = {
    toys.LeaksByOne: FUTURE,
    toys.LeaksAtOnePlace: FUTURE,
    toys.LeaksBySelection: FUTURE,
    toys.LeaksByMaximum: FUTURE,
    toys.LeaksLength: FUTURE - {"causality"},
    toys.IgnoresMask: {"padding left"},  # on the right a causal module needs no mask
    toys.MasksValuesOnly: {"padding left"},
    toys.CountsPositionsFromTheLeft: {"padding left"},
    toys.PoisonedByEmpty: {"empty rows"},
    toys.MixesBatch: {"padding right", "padding left", "batch mates"},
    toys.WantsMultiples: {"prefix", "padding right", "padding left", "lengths", "memory = full"},
    toys.NanOnOne: FUTURE | {"lengths"},
    toys.Rounds: {"prefix", "padding right", "padding left", "lengths", "memory = full"},
    toys.Draws: {"determinism", "memory = full"},
    toys.TrainsOtherwise: {"train = eval"},
    toys.ForgetsMemory: {"memory = full"},
    toys.OverwritesMemory: {"memory = full"},
    toys.Detaches: {"gradients"},
    toys.NanGradient: {"gradients"},
    toys.OverflowsInHalf: {"float16"},
}
CAUGHT_BY_CARD = {
    toys.NanOnEmpty: {"empty rows"},
    toys.HasIdleParameter: {"gradients"},
    toys.RaisesInHalf: {"bfloat16", "float16"},
    toys.ReturnsFloat: {"bfloat16", "float16"},
}


@pytest.mark.parametrize("bad", CAUGHT, ids=lambda bad: bad.__name__)
def test_each_fault_is_caught_and_nothing_else(bad):
    assert failed(bad(), causal="strict") == CAUGHT[bad]


@pytest.mark.parametrize("bad", CAUGHT_BY_CARD, ids=lambda bad: bad.__name__)
def test_what_only_a_card_promises(bad):
    assert failed(bad(), causal="strict") == set()
    assert failed(toys.with_card(bad, smooth=True)(), causal="strict") == CAUGHT_BY_CARD[bad]


def test_without_causality_ignored_masks_show_on_both_sides():
    both = {"padding right", "padding left"}
    assert failed(toys.Sound(causal=False)) == set()
    assert failed(toys.IgnoresMask(causal=False)) == both
    assert failed(toys.MasksValuesOnly(causal=False)) == both


@pytest.mark.parametrize("bad", [toys.BreaksGraph, toys.RecompilesAlways])
def test_compilation(bad):
    for module, verdict in ((bad(), "info"), (toys.with_card(bad)(), "FAIL")):
        row = run_rule("compile", make_subject(module, tokens()))
        assert row.verdict == verdict, row
    assert run_rule("compile", make_subject(toys.with_card(bad, compile=False)(), tokens())).verdict == "skipped"


def test_compiled_code_must_compute_the_same():
    assert failed(toys.CompilesOtherwise(), rules=["compile"]) == {"compile"}


@pytest.mark.usefixtures("quick")
def test_the_report_names_the_leak():
    report = check(toys.LeaksAtOnePlace(), tokens(), causal="strict")
    row = report["causality"]
    assert "output position 4 changed by" in row.explanation
    assert "input position 11 was replaced" in row.explanation
    assert row.limit < 1e-5 < row.measured < 1e-2
    assert "FAIL     causality" in str(report)
    with pytest.raises(AssertionError, match="output position 4"):
        report.raise_if_failed()


def test_a_leak_by_selection_is_known_as_such():
    leak = make_subject(toys.LeaksBySelection(), tokens())
    strict, selection, none = (
        run_rule("causality", make_subject(toys.LeaksBySelection(), tokens(), causal=claim))
        for claim in ("strict", "selection", None)
    )
    assert (strict.verdict, selection.verdict, none.verdict) == ("FAIL", "pass", "info")
    assert "no gradient shows it" in strict.explanation
    assert "MARK" in selection.explanation
    assert leak.claim is None
    gradient = run_rule("causality", make_subject(toys.LeaksByOne(), tokens(), causal="selection"))
    assert gradient.verdict == "FAIL"
    assert "has a gradient from input position" in gradient.explanation


def test_without_a_claim_a_leak_is_reported_and_does_not_fail():
    leaking, sound = (run_rule("causality", make_subject(toys.Sound(causal=c), tokens())) for c in (False, True))
    assert (leaking.verdict, sound.verdict) == ("info", "info")
    assert leaking.measured > 0.01
    assert sound.measured == 0


def test_a_short_sequence_reaches_a_leak_inside_blocks_of_a_long_one():
    class Blocks(nn.Module):
        def forward(self, x):
            blocks = x.unflatten(1, (-1, 64))
            return (blocks + blocks.flip(2)).flatten(1, 2)

    assert failed(Blocks(), tokens(n=256), rules=["causality"], causal="strict") == {"causality"}


def encoder(**options):
    return nn.TransformerEncoderLayer(12, 3, 24, batch_first=True, **options)


def test_torch_encoder_layer_passes():
    report = check(encoder(), tokens(), **MASKED)
    assert report.ok, str(report)
    skipped = {row.name for row in report.rows if row.verdict == "skipped"}
    assert skipped == {"prefix", "memory = full"}


def test_torch_encoder_layer_with_a_causal_mask_is_strict():
    mask = nn.Transformer.generate_square_subsequent_mask(N)
    inputs = {"src": tokens(), "src_mask": mask}
    assert failed(encoder(), inputs, causal="strict", **MASKED) == set()
    assert failed(encoder(), {"src": tokens()}, causal="strict", **MASKED) == {"causality", "prefix"}


@pytest.mark.slow
def test_torch_encoder_with_nested_tensors():
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 24, batch_first=True), 2)
    assert failed(stack, rules=RULES, **MASKED) == set()  # compiled, padding holds other values, which is nobody's loss


def test_short_floats_and_single_sequences():
    module = encoder().to(torch.bfloat16)
    assert failed(module, tokens().to(torch.bfloat16), **MASKED) == set()
    assert failed(toys.Sound(), tokens(batch=1), causal="strict") == set()
    assert failed(toys.PoisonedByEmpty(), tokens(batch=1)) == set()  # of one sequence only
    assert run_rule("batch mates", make_subject(toys.Sound(), tokens(batch=1))).verdict == "skipped"


def test_outputs_of_another_length_are_left_alone():
    class Halves(nn.Linear):
        def forward(self, x, key_mask=None):
            return super().forward(x)[:, ::2]

    halves = Halves(12, 12)
    assert failed(halves) == set()
    assert run_rule("padding left", make_subject(halves, tokens())).verdict == "skipped"
    assert failed(halves, causal="strict") == {"causality"}


def test_maps_are_padded_on_their_sides():
    class Pool(nn.Module):
        card = Card(title="Pool", paper="none", year=2026, family="toy", data="map", smooth=True)

        def __init__(self, masks=True):
            super().__init__()
            self.dim, self.masks, self.score = 4, masks, nn.Conv2d(4, 1, 1)

        def forward(self, x, *, key_mask=None):
            scores = self.score(x)
            if key_mask is not None and self.masks:
                scores = scores.masked_fill(~key_mask[:, None], torch.finfo(scores.dtype).min)
                x = x.masked_fill(~key_mask[:, None], 0.0)
            weights = scores.flatten(2).softmax(-1).view_as(scores)
            return x + (weights * x).sum((2, 3), keepdim=True)

    assert failed(Pool()) == set()
    assert make_subject(Pool()).inputs["x"].shape == (2, 4, 6, 7)
    assert failed(Pool(masks=False)) == {"padding right", "padding left"}


def test_polarity_matters():
    wrong = dict(MASKED, mask_true="keep")
    assert {"padding right", "padding left"} <= failed(encoder(), **wrong)


def test_torch_multihead_attention_passes_and_its_nan_is_told():
    x, attention = tokens(), nn.MultiheadAttention(12, 3, batch_first=True)
    options = {"mask_name": "key_padding_mask", "mask_true": "drop"}
    assert failed(attention, (x, x, x), **options) == set()
    row = run_rule("empty rows", make_subject(attention, (x, x, x), **options))
    assert row.verdict == "info"
    assert "NaN" in row.explanation
    crossed = {"query": x, "key": tokens(n=9), "value": tokens(n=9), "need_weights": False}
    assert failed(attention, crossed, **options) == set()


def test_time_may_come_first():
    x, attention = tokens().transpose(0, 1), nn.MultiheadAttention(12, 3)
    options = {"mask_name": "key_padding_mask", "mask_true": "drop", "time_dim": 0}
    assert failed(attention, (x, x, x), **options) == set()
    assert failed(nn.GRU(12, 12), x, time_dim=0, causal="strict") == set()
    assert failed(nn.GRU(12, 6, bidirectional=True), x, time_dim=0, causal="strict") == {"causality", "prefix"}


def test_a_decoder_may_see_all_of_its_memory():
    mask = nn.Transformer.generate_square_subsequent_mask(N)
    decoder = nn.TransformerDecoderLayer(12, 3, 24, batch_first=True)
    inputs = {"tgt": tokens(), "memory": tokens(), "tgt_mask": mask}
    for name in ("tgt_key_padding_mask", "memory_key_padding_mask"):
        assert failed(decoder, inputs, causal="strict", mask_name=name, mask_true="drop") == set()


class Bytes(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, 6)

    def forward(self, ids):
        return self.embed(ids.long()).cumsum(1)


def test_token_ids_and_pooled_outputs():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 12)

        def forward(self, ids, *, key_mask=None):
            key_mask = torch.ones_like(ids, dtype=torch.bool) if key_mask is None else key_mask
            return {"logits": (self.embed(ids) * key_mask[..., None]).sum(1) / key_mask.sum(1, keepdim=True).clamp(1)}

    ids = torch.randint(9, (2, N))
    assert failed(Pooled(), ids) == set()
    embedding = run_rule("causality", make_subject(nn.Embedding(9, 12), ids, causal="selection"))
    assert embedding.verdict == "info"
    assert "ids have no gradient" in embedding.explanation
    claims = {None: "skipped", "strict": "FAIL", "selection": "FAIL"}  # a claim that cannot be shown is not kept
    for claim, verdict in claims.items():
        assert run_rule("causality", make_subject(Pooled(), ids, causal=claim)).verdict == verdict
    for dtype in (torch.uint8, torch.int32):
        assert failed(Bytes(), torch.randint(256, (2, N)).to(dtype), causal="strict") == set()
    embedding = make_subject(nn.Embedding(9, 12), ids, causal="strict")
    assert run_rule("causality", embedding).verdict == "pass"


def test_a_module_without_a_mask_says_so():
    report = {rule: run_rule(rule, make_subject(encoder(), tokens())) for rule in ("padding right", "empty rows")}
    for row in report.values():
        assert row.verdict == "skipped"
        assert "takes no key_mask" in row.explanation
        assert "src_key_padding_mask" in row.explanation


@pytest.mark.usefixtures("quick")
def test_the_module_is_left_as_it_was():
    module = nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(N), nn.Dropout(0.3)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = tokens()
    state = torch.get_rng_state()
    check(module, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert module[2].p == 0.3
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.usefixtures("quick")
def test_registered_mechanisms_need_no_inputs():
    layer = regard.create("linear_transformer", dim=12, num_heads=3, causal=True)
    for module in (layer, layer.core):
        subject = make_subject(module)
        assert subject.claim == "strict"
        assert subject.time_dim == (1 if module is layer else 2)
        for rule in ("causality", "memory = full", "padding left", "empty rows"):
            assert run_rule(rule, subject).verdict == "pass"
    free = regard.create("linear_transformer", dim=12, num_heads=3)
    assert regard.check(free).ok
    with pytest.raises(TypeError, match=r"no tensor"):
        regard.check(free, 3)
    assert failed(free, causal="strict") >= {"causality", "prefix"}


def test_the_context_of_each_token_is_padded_with_its_token():
    layer = regard.create("quasi_attention", dim=12, num_heads=3)
    rules = ("padding right", "padding left", "empty rows")
    assert failed(layer, (tokens(), tokens()), rules=rules) == set()


def test_wrong_arguments_are_refused_in_words():
    x = tokens()
    with pytest.raises(ValueError, match=r"not from the registry.*pass inputs"):
        check(encoder())
    with pytest.raises(ValueError, match=r"EncoderLayer on src float32 \(2, 16, 13\) cannot be called"):
        check(encoder(), tokens(dim=13))
    with pytest.raises(ValueError, match="neither"):
        check(encoder(), x, mask_true="maybe")
    with pytest.raises(ValueError, match="none of None"):
        check(encoder(), x, causal=True)
    with pytest.raises(ValueError, match="leave it out"):
        check(toys.Sound(), {"x": x, "key_mask": torch.ones(2, N, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"mask_name='key_padding_mask', but the forward.*takes src, src_mask"):
        check(encoder(), x, mask_name="key_padding_mask")
    with pytest.raises(ValueError, match="no axis 3"):
        check(encoder(), x, time_dim=3)
    with pytest.raises(TypeError, match=r"nn\.Module, got str"):
        check("multi_head", x)
    with pytest.raises(TypeError, match="no tensor"):
        check(encoder(), (None,))


@pytest.mark.usefixtures("quick")
def test_the_report_reads_well_and_travels_as_json():
    report = check(toys.NanOnOne(), tokens(), causal="strict")
    lines = str(report).splitlines()
    assert lines[0].startswith("NanOnOne on x float32 (2, 16, 12): 6 failed, ")
    assert max(map(len, lines)) <= 120
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["ok"] is False
    assert [row["name"] for row in told["rows"]] == list(RULES)
    assert report["lengths"].explanation == "length 1 yields NaN or infinity"
    with pytest.raises(KeyError, match="no rule 'leaks'"):
        report["leaks"]


def test_nothing_else_is_said_of_an_output_that_is_not_finite():
    class Nan(nn.Module):
        def forward(self, x):
            return x / 0 * 0

    report = check(Nan(), tokens())
    assert [(row.name, row.verdict) for row in report.rows] == [("finite", "FAIL")]


def test_warnings_of_strangers_are_theirs():
    class Warns(nn.Linear):
        def forward(self, x):
            warnings.warn("old", stacklevel=1)
            return super().forward(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = make_subject(Warns(12, 12), tokens())
    assert failed(subject.module, rules=["lengths", "determinism"]) == set()
