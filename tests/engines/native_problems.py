"""Random problems for the native kernels: every width, memory layout, mask shape and term that they read themselves."""

import random

import torch

from regard import scores as s
from tests.engines.problems import random_pattern
from tests.patterns import expressions

WIDTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65, 80, 127, 128, 129, 200, 256)


def native_problem(seed, dtype=torch.float64):
    """Leaves (query, key, value, then all else that has a gradient) and the options of ``attend``."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    batch, groups, rep = rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 3)
    n, m = (rng.choice([rng.randint(1, 9), rng.randint(50, 80), rng.randint(100, 300)]) for _ in range(2))
    m = n if rng.random() < 0.5 else m
    width, value_width, heads = rng.choice(WIDTHS), rng.choice(WIDTHS), groups * rep
    leaves = {
        "query": laid_out(rng, (batch, heads, n, width), dtype),
        "key": laid_out(rng, (batch, groups, m, width), dtype),
        "value": laid_out(rng, (batch, groups, m, value_width), dtype),
    }
    options = {"enable_gqa": True, "is_causal": rng.random() < 0.3, "scale": rng.choice([None, 0.1, -0.05])}
    if n == m and n % 4 == 0 and n > 4 and batch == 2:
        options["pattern"] = expressions.random_pattern(seed, n, heads)
    elif rng.random() < 0.9:
        options["pattern"] = random_pattern(rng, n, m, heads, batch)
    if rng.random() < 0.3 and not getattr(options.get("pattern"), "rectangular", False):
        options["q_offset"] = rng.randint(-n - 2, m + 2)
    options["score"] = random_terms(rng, leaves, heads, n, m)
    add_masks(rng, leaves, options, (batch, heads, n, m))
    for leaf in leaves.values():
        leaf.requires_grad_()
    return leaves, options


def laid_out(rng, shape, dtype):
    """Random numbers in a random memory layout."""
    batch, heads, rows, width = shape
    return rng.choice(
        [
            lambda: torch.randn(shape, dtype=dtype),
            lambda: torch.randn(batch, rows, heads, width, dtype=dtype).transpose(1, 2),
            lambda: torch.randn(batch, heads, width, rows, dtype=dtype).mT,
            lambda: torch.randn(batch, heads, rows + 3, width + 5, dtype=dtype)[:, :, 1:-2, 3:-2],
            lambda: (
                torch.randn(batch, rows, 3 * heads * width + 1, dtype=dtype)[..., 1:]
                .view(batch, rows, 3, heads, width)[:, :, 1]
                .transpose(1, 2)
            ),
            lambda: torch.randn(1, heads, rows, width, dtype=dtype).expand(shape),
            lambda: torch.randn(batch, 1, rows, width, dtype=dtype).expand(shape),
            lambda: torch.randn(batch, heads, rows, 2 * width, dtype=dtype)[..., ::2],
        ]
    )()


def random_terms(rng, leaves, heads, n, m):
    """Up to three terms in any order, one SoftCap among them at most; their tensors join the leaves."""
    dtype = leaves["query"].dtype

    def bias(index):
        return s.Bias(torch.randn(rng.choice([1, heads]), index.size, dtype=dtype), index)

    places = max(n, m)
    grids = [(places,), (3, -(-places // 3)), (2, 3, -(-places // 6))]
    makers = [
        lambda: bias(s.Relative(rng.choice([0, 4, 500]))),
        lambda: bias(s.T5Buckets(16, 40, rng.random() < 0.5)),
        lambda: bias(s.RelativeGrid(rng.choice(grids))),
        lambda: bias(s.RelativeGrid((places,), rng.randint(1, places), rng.randint(1, 3))),
        lambda: s.Slope(torch.rand(heads, dtype=dtype)),
        lambda: s.Slope(),
    ]
    terms = [rng.choice(makers)() for _ in range(rng.choice([0, 0, 1, 2]))]
    if rng.random() < 0.3:
        terms.insert(rng.randint(0, len(terms)), s.SoftCap(rng.choice([0.7, 5.0])))
    for number, term in enumerate(terms):
        leaves.update({f"term {number}": tensor for tensor in term.tensors})
    return terms


def add_masks(rng, leaves, options, sizes):
    """A key mask, and an attn_mask of any shape that broadcasts, bool or of numbers with a gradient."""
    batch, heads, n, m = sizes
    if rng.random() < 0.4:
        options["key_mask"] = torch.rand(rng.choice([(m,), (1, m), (batch, m)])) < rng.choice([0.1, 0.6, 0.95])
    kind = rng.choice(["none", "bool", "float", "float"])
    if kind == "none":
        return
    shape = (rng.choice([1, batch]), rng.choice([1, heads]), rng.choice([1, n]), rng.choice([1, m]))
    if kind == "bool":
        options["attn_mask"] = torch.rand(shape) < 0.7
        return
    mask = torch.randn(*shape[:2], shape[3], shape[2], dtype=leaves["query"].dtype).mT
    mask = mask.contiguous() if rng.random() < 0.5 else mask
    if rng.random() < 0.3:
        mask = mask.masked_fill(torch.rand(shape) < 0.2, -torch.inf)
    leaves["attn_mask"] = options["attn_mask"] = mask


def in_double(leaves, options):
    """The same problem in float64."""
    wide = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    terms = [
        s.from_spec(term.spec, [wide[f"term {number}"]] if term.tensors else [])
        for number, term in enumerate(options["score"])
    ]
    options = {**options, "score": terms}
    return wide, {**options, "attn_mask": wide["attn_mask"]} if "attn_mask" in wide else options
