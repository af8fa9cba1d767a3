"""compile, export, autocast, vmap, jvp and gradients of gradients: values compared with the dense engine."""

import copy
import io
import re

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import regard
from regard.patterns import Causal, Global, Segments, Window
from regard.scores import Bias, Dot, Relative, Slope, SoftCap
from tests.samples import some_daily

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own forward-mode rules use it
DOUBLE = {"dtype": torch.float64}
ENGINES = regard.engines("cpu")  # native is one of them where its library is


class Layer(torch.nn.Module):
    """Patterns in the constructor, terms made in forward, as layers do."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(4, 9))
        self.pattern = Window(5) | Global(2)

    def forward(self, q, k, v, key_mask):
        terms = [Bias(self.table, Relative(4)), SoftCap(4.0)]
        return regard.attend(q, k, v, self.pattern, is_causal=True, score=terms, key_mask=key_mask, return_lse=True)


def inputs(n, batch=2):
    return [torch.randn(batch, 4, n, 8, requires_grad=True) for _ in range(3)] + [torch.rand(batch, n) < 0.8]


@pytest.fixture
def compile_once():
    """torch.compile of a whole function for all lengths; a second compilation is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield lambda function: torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")


# --- compile and export ----------------------------------------------------------------------------------------------


def test_compiles_once_for_all_lengths(compile_once):
    layer = Layer()
    compiled = compile_once(layer)
    for n in (20, 33, 70):
        arguments = inputs(n)
        leaves = [*arguments[:3], layer.table]
        found, expected = (
            [out, *torch.autograd.grad(out.sum() + lse.logsumexp(-1).sum(), leaves)]
            for out, lse in (run(*arguments) for run in (compiled, layer))
        )
        assert_close(found, expected)


WHOLE = (
    lambda q, k, v, mask: regard.attend(q, k, v, Window(3) & Causal(), score=Slope(), key_mask=mask),
    lambda q, k, v, mask: regard.attend(q, k, v, score=Dot(q, torch.ones(1, 9, 8), Relative(4)), scale=0.3),
    lambda q, k, v, mask: regard.attend(q, k, v, Segments(mask.long().cumsum(-1)), attn_mask=q[..., :1] > 0),
    lambda q, k, v, mask: regard.attend(q, k, v),
    lambda q, k, v, mask: regard.attend(q, k, v, is_causal=True, key_mask=mask),
    lambda q, k, v, mask: regard.attend(q, k[..., 1:, :], v[..., 1:, :], is_causal=True, q_offset=0),
    lambda q, k, v, mask: regard.attend(q, k, v, attn_mask=(q @ k.mT).detach(), engine="dense"),
)


@pytest.mark.parametrize("function", [*some_daily(WHOLE, 3)])
def test_compiles_whole(compile_once, function):
    compiled = compile_once(function)
    for n in (11, 18):
        arguments = inputs(n)
        assert_close(compiled(*arguments), function(*arguments))


def test_dropout_compiles(compile_once):
    compiled = compile_once(lambda q, k, v: regard.attend(q, k, v, dropout_p=0.5).mean())
    q, k, v = (t.detach().abs() for t in inputs(40)[:3])
    drawn = {float(compiled(q, k, v)) for _ in range(3)}
    assert len(drawn) == 3


def test_generator_is_refused_inside_a_compiled_region():
    q, k, v, _ = inputs(5)
    generator = torch.Generator()
    compiled = torch.compile(
        lambda: regard.attend(q, k, v, dropout_p=0.5, generator=generator), fullgraph=True, backend="eager"
    )
    with pytest.raises(Exception, match=r"a torch\.Generator cannot enter a compiled region"):
        compiled()


@pytest.mark.slow
def test_compiles_with_inductor():
    layer = Layer()
    compiled, arguments = torch.compile(layer, fullgraph=True), inputs(33)
    assert_close(compiled(*arguments), layer(*arguments))


@pytest.mark.parametrize("strict", [True, False])
def test_exports_with_dynamic_lengths(strict):
    layer, n, batch = Layer(), torch.export.Dim("n", min=2), torch.export.Dim("b", min=2)
    shapes = {name: {0: batch, 2: n} for name in "qkv"} | {"key_mask": {0: batch, 1: n}}
    exported = torch.export.export(layer, tuple(inputs(20)), dynamic_shapes=shapes, strict=strict)
    best = "native" if "native" in ENGINES else "tiles"
    assert sum(f"regard.attend_{best}" in str(node.target) for node in exported.graph.nodes) == 1
    saved = io.BytesIO()
    torch.export.save(exported, saved)
    saved.seek(0)
    for program in (exported, torch.export.load(saved)):
        for size in (7, 41):
            arguments = inputs(size, batch=3)
            found, expected = program.module()(*arguments), layer(*arguments)
            assert_close(found, expected)
            assert_close(*(torch.autograd.grad(out.sum(), arguments[:3]) for out, _ in (found, expected)))


@pytest.mark.parametrize("name", ENGINES)
def test_operators_keep_their_promises(name):
    """torch's own checks: schema, fake kernels, autograd registration, tracing with symbolic shapes."""
    q, k, v, mask = inputs(6)
    arguments = (q, k, v, [mask], "0 1 0 0 Causal()", None, None, 0.0)
    found = torch.library.opcheck(getattr(torch.ops.regard, f"attend_{name}").default, arguments)
    assert set(found.values()) == {"SUCCESS"}


def test_modules_that_attend_copy_and_pickle():
    layer = Layer()
    arguments = inputs(9)
    assert_close(copy.deepcopy(layer)(*arguments), layer(*arguments))
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    assert_close(torch.load(saved, weights_only=False)(*arguments), layer(*arguments))


# --- autocast and checkpoint -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_autocast(engine):
    q, k, v, _ = inputs(20)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = regard.attend(q, k.bfloat16(), v, engine=engine, return_lse=True)
        assert regard.attend(q.double(), k.double(), v.double(), engine=engine).dtype == torch.float64
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    expected = regard.attend(*(t.bfloat16() for t in (q, k, v)), engine=engine)
    assert_close(out, expected, rtol=0, atol=0)  # nothing is cast again inside
    out.sum().backward()
    assert q.grad.dtype == torch.float32


def test_checkpoint():
    layer, arguments = Layer(), inputs(12)
    leaves = [*arguments[:3], layer.table]
    found = torch.autograd.grad(checkpoint(layer, *arguments, use_reentrant=False)[0].sum(), leaves)
    assert_close(found, torch.autograd.grad(layer(*arguments)[0].sum(), leaves))


def test_inference_mode():
    layer, arguments = Layer(), inputs(12)
    with torch.inference_mode():
        found = layer(*arguments)
    assert_close(found, layer(*arguments))


# --- torch.func ------------------------------------------------------------------------------------------------------

B, H, G, N, M, D = 2, 4, 2, 9, 11, 3


def tensors(*lead):
    return [torch.randn(*lead, heads, n, D, **DOUBLE) for heads, n in ((H, N), (G, M), (G, M))]


def plain(engine, q, k, v, mask=None):
    out, lse = regard.attend(q, k, v, is_causal=True, key_mask=mask, enable_gqa=True, engine=engine, return_lse=True)
    return out, lse.masked_fill(lse == -torch.inf, 0.0)


TABLE, BIAS, RELATIVE = torch.randn(H, 9, **DOUBLE), torch.randn(N, M, **DOUBLE), torch.randn(1, 9, 2, **DOUBLE)
OWN = torch.randn(H, N, 2, **DOUBLE)


def biased(engine, q, k, v, mask=None, *, table=TABLE, bias=BIAS, terms=(), pattern=Window(4) | Global(2)):  # noqa: B008
    options = {"score": [Bias(table, Relative(4)), *terms], "attn_mask": bias, "key_mask": mask, "enable_gqa": True}
    out, lse = regard.attend(q, k, v, pattern, return_lse=True, engine=engine, **options)
    return out, lse.masked_fill(lse == -torch.inf, 0.0)


def rich(*arguments, own=OWN, **options):
    return biased(*arguments, terms=[Dot(own, RELATIVE, Relative(4))], **options)


def loss(function, engine, mask=None):
    def scalar(*leaves):
        out, lse = function(engine, *leaves, mask)
        return out.sin().sum() + lse.cos().sum()

    return scalar


CASES = [("sdpa", plain), ("native", plain), ("native", biased), ("tiles", plain), ("tiles", rich)]
CASES = [(engine, function) for engine, function in CASES if engine in ENGINES]
RICHEST = [case for case in CASES if case[1] is not plain]
cases = pytest.mark.parametrize(("engine", "function"), CASES)


@cases
def test_jvp(engine, function):
    primals, tangents, mask = tuple(tensors(B)), tuple(tensors(B)), torch.rand(B, M) < 0.7
    found, expected = (
        jvp(lambda *leaves, name=name: function(name, *leaves, mask), primals, tangents) for name in (engine, "dense")
    )
    assert_close(found, expected)
    assert found[1][0].abs().sum() > 0  # tangents are not dropped


@cases
def test_forward_mode_autograd(engine, function):
    primals, tangents = tensors(B), tensors(B)
    results = []
    for name in (engine, "dense"):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip(primals, tangents, strict=True)]
            results.append([forward_ad.unpack_dual(t) for t in function(name, *duals)])
    assert_close(*results)


@cases
def test_vmap(engine, function):
    batched, single, mask = tensors(5, B), tensors(B), torch.rand(5, B, M) < 0.7
    for transform in (
        lambda name: vmap(lambda *leaves: function(name, *leaves))(*batched, mask),
        lambda name: vmap(lambda q: function(name, q, *single[1:]))(batched[0]),
        lambda name: vmap(lambda q: function(name, q, *single[1:], mask[0]), in_dims=2)(batched[0].movedim(0, 2)),
        lambda name: vmap(lambda m: function(name, *single, m))(mask),
        lambda name: vmap(lambda *leaves: function(name, *leaves))(*single, mask[0]),
        lambda name: vmap(vmap(lambda *leaves: function(name, *leaves)))(*batched, mask),
    ):
        assert_close(transform(engine), transform("dense"))


@cases
def test_gradients_of_samples(engine, function):
    batched, single, mask = tensors(4, B), tensors(B), torch.rand(B, M) < 0.7
    for transform in (
        lambda name: grad(loss(function, name, mask), (0, 1, 2))(*single),
        lambda name: vmap(grad(loss(function, name, mask), (0, 1, 2)))(*batched),
        lambda name: vmap(grad(loss(function, name), 1), in_dims=(0, None, None))(batched[0], *single[1:]),
        lambda name: grad(lambda q: vmap(loss(function, name))(q, *batched[1:]).sum())(batched[0]),
    ):
        assert_close(transform(engine), transform("dense"))


@cases
def test_second_order_transforms(engine, function):
    single, tangents = tensors(), tuple(tensors())
    for transform in (
        lambda name: grad(lambda q: grad(loss(function, name), 1)(q, *single[1:]).sin().sum())(single[0]),
        lambda name: jvp(grad(loss(function, name)), tuple(single), tangents),
        lambda name: jacrev(lambda q: function(name, q, *single[1:])[0].sum((0, 1)))(single[0]),
        lambda name: jacfwd(lambda q: function(name, q, *single[1:])[0].sum((0, 1)))(single[0]),
        lambda name: hessian(lambda w: loss(function, name)(single[0] * w, *single[1:]))(torch.ones(D, **DOUBLE)),
    ):
        assert_close(transform(engine), transform("dense"))


@pytest.mark.parametrize(("engine", "function"), RICHEST)
def test_transforms_of_what_sequences_share(engine, function):
    """Tables, masks and pattern tensors have no batch dimension to put a mapped one beside."""
    single, ids = tensors(B), torch.tensor([[0] * 6 + [1] * 5, [0] * 3 + [1] * 8])
    tables, biases = torch.randn(3, H, 9, **DOUBLE), torch.randn(3, N, M, **DOUBLE)
    batched = tensors(3, B)
    for transform in (
        lambda name: vmap(lambda table: function(name, *single, table=table))(tables),
        lambda name: vmap(lambda bias: function(name, *single, bias=bias))(biases),
        lambda name: vmap(lambda q: function(name, q, *single[1:], pattern=Segments(ids)))(batched[0]),
        lambda name: vmap(grad(lambda t, q: function(name, q, *single[1:], table=t)[0].sin().sum()), (None, 0))(
            TABLE, batched[0]
        ),
        lambda name: vmap(grad(lambda b, q: function(name, q, *single[1:], bias=b)[0].sin().sum()), (None, 0))(
            BIAS, batched[0]
        ),
    ):
        assert_close(transform(engine), transform("dense"))


@cases
def test_gradients_of_gradients(engine, function):
    results = []
    leaves = [t.requires_grad_() for t in tensors(B)]
    mask = torch.rand(B, M) < 0.7
    mask[0] = False
    for name in (engine, "dense"):
        first = torch.autograd.grad(loss(function, name, mask)(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum(t.sin().sum() for t in first), leaves, create_graph=True)
        third = torch.autograd.grad(sum(t.sin().sum() for t in second), leaves)
        results.append([*first, *second, *third])
    assert_close(*results)


@pytest.mark.parametrize(("engine", "function"), RICHEST)
def test_gradients_of_gradients_of_terms_and_masks(engine, function):
    leaves = [t.requires_grad_() for t in (*tensors(B), TABLE.clone(), BIAS.clone())]
    own = {"own": OWN.clone().requires_grad_()} if function is rich else {}
    leaves += own.values()
    results = []
    for name in (engine, "dense"):
        q, k, v, table, bias = leaves[:5]
        out, lse = function(name, q, k, v, table=table, bias=bias, **own)
        first = torch.autograd.grad(out.sin().sum() + lse.cos().sum(), leaves, create_graph=True)
        results.append([*first, *torch.autograd.grad(sum(t.sin().sum() for t in first), leaves)])
    assert_close(*results)


def test_an_input_that_depends_on_another():
    """The second derivative follows each path once."""
    q = torch.randn(1, 2, 5, 3, **DOUBLE, requires_grad=True)

    def function(name):
        k, v = q * 2, q.sin()
        first = torch.autograd.grad(regard.attend(q, k, v, engine=name).sin().sum(), q, create_graph=True)[0]
        return torch.autograd.grad(first.sin().sum(), q)[0]

    for name in ENGINES:
        assert_close(function(name), function("dense"))


def test_a_long_table_under_transforms():
    """Dot looks at its entries to find the few it needs; a transform must not stand in the way."""
    single, table = tensors(), torch.randn(1, 81, 2, **DOUBLE)
    score = [Dot(OWN, table, Relative(40))]

    def function(name, q):
        return regard.attend(q, *single[1:], Window(3), score=score, enable_gqa=True, engine=name).sum((0, 1))

    for transform in (
        lambda name: jvp(lambda q: function(name, q), (single[0],), (single[0].sin(),)),
        lambda name: jacfwd(lambda q: function(name, q))(single[0]),
        lambda name: hessian(lambda w: function(name, single[0] * w).sin().sum())(torch.ones(D, **DOUBLE)),
    ):
        assert_close(transform("tiles"), transform("dense"))


def test_vmap_compiles(compile_once):
    def function(q, mask):
        return vmap(lambda q, mask: regard.attend(q, q, q, Window(3), key_mask=mask))(q, mask)

    compiled = compile_once(function)
    for n in (9, 14):
        q, mask = torch.randn(3, 2, 4, n, 5, requires_grad=True), torch.rand(3, 2, n) < 0.8
        found, expected = (run(q, mask) for run in (compiled, function))
        assert_close(found, expected)
        assert_close(*(torch.autograd.grad(out.sin().sum(), q) for out in (found, expected)))


def distance_of_two(i, j):
    return (i - j).abs() % 2


def test_own_functions_compile(compile_once):
    term = Bias(torch.randn(4, 2), distance_of_two)
    odd = regard.patterns.from_mask_mod(lambda b, h, i, j: (i + j) % 2 == h % 2)

    def function(q, k, v, mask):
        return regard.attend(q, k, v, odd, score=term, key_mask=mask)

    compiled = compile_once(function)
    for n in (9, 14):
        arguments = inputs(n)
        assert_close(compiled(*arguments), function(*arguments))


def test_vmap_of_dropout_says_what_it_needs():
    q = torch.randn(3, 2, 40, 4)
    with pytest.raises(RuntimeError, match=re.compile("random", re.IGNORECASE)):
        vmap(lambda t: regard.attend(t, t, t, dropout_p=0.5))(q)
    same = torch.ones(3, 2, 40, 4)
    found = vmap(lambda t: regard.attend(t, t, t, dropout_p=0.5), randomness="different")(same)
    assert (found[0] != found[1]).any()
