"""Random attention problems: pattern expressions, shapes, masks and score terms, the same for every engine."""

import random

import torch

import regard
from regard import patterns as p
from regard import scores as s
from regard.engines import ENGINES

DOUBLE = torch.float64


def problem_for(engine, seed, **options):
    """A random problem that the engine serves."""
    return random_problem(seed, plain=ENGINES[engine].serves.patterns == "plain", dot=engine != "native", **options)


def attend_and_gradients(engine, leaves, options, wanted=True):
    """out, lse and, where wanted, the gradients of all leaves, for random gradients of out and lse."""
    options = {**options, "engine": engine, "return_lse": True}
    out, lse = regard.attend(leaves["query"], leaves["key"], leaves["value"], **options)
    assert not out.isnan().any()
    if not wanted:
        return out, lse
    torch.manual_seed(1)
    seen = lse.masked_fill(lse == -torch.inf, 0.0)
    loss = (out * torch.randn_like(out)).sum() + (seen * torch.randn_like(seen)).sum()
    return out, lse, *torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)


def random_pattern(rng, n, m, heads, batch, depth=2):
    """A random expression over all kinds of patterns that fit these sizes."""
    if depth and rng.random() < 0.7:
        left, right = (random_pattern(rng, n, m, heads, batch, depth - 1) for _ in range(2))
        return rng.choice([left & right, left | right, left & ~right, ~left | right])
    return rng.choice(_leaves(n, m, heads, batch))(rng)


def _leaves(n, m, heads, batch):
    leaves = [
        lambda r: p.Full(),
        lambda r: p.Causal(),
        lambda r: p.Window(r.randint(0, 9)),
        lambda r: p.Window(r.randint(0, 40), r.randint(0, 5)),
        lambda r: p.Dilated(r.randint(1, 4), r.randint(1, 5)),
        lambda r: p.Strided(r.randint(1, 7)),
        lambda r: p.Fixed(4, r.randint(1, 3)),
        lambda r: p.Blocks(r.randint(1, 20)),
        lambda r: p.Global(r.randint(1, 3)),
        lambda r: p.Global(torch.rand(batch, m) < 0.1),
        lambda r: p.Segments(torch.randint(3, (batch, m)).sort().values),
        lambda r: p.PerHead(*(p.Window(r.randint(0, 6)) if h % 2 else p.Strided(3) for h in range(heads))),
    ]
    if n == m:
        leaves += [
            lambda r: p.from_mask(torch.rand(heads, n, m) < 0.5),
            lambda r: p.from_mask_mod(lambda b, h, q, k: (q + k) % 3 == h % 3, heads=heads),
            lambda r: p.CrissCross((2, n // 2)) if n % 2 == 0 else p.Causal(),
        ]
    return leaves


def random_problem(seed, plain=False, dot=True, dtype=DOUBLE, grad=True):
    """query, key, value and the options of ``attend``, and all tensors that have a gradient."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    batch, groups, rep = rng.randint(1, 3), rng.randint(1, 2), rng.randint(1, 3)
    n, m = rng.randint(1, 30), rng.randint(1, 30)
    if rng.random() < 0.4:
        n, m = rng.randint(60, 150), rng.randint(60, 150)
    if rng.random() < 0.5:
        m = n
    width, value_width, heads = rng.randint(1, 6), rng.randint(1, 6), groups * rep
    leaves = {
        "query": torch.randn(batch, heads, n, width, dtype=dtype),
        "key": torch.randn(batch, groups, m, width, dtype=dtype),
        "value": torch.randn(batch, groups, m, value_width, dtype=dtype),
    }
    options = {"enable_gqa": True, "is_causal": rng.random() < 0.4}
    if not plain:
        options["pattern"] = random_pattern(rng, n, m, heads, batch)
        _add_terms(rng, leaves, options, batch, heads, n, dot)
    if not plain or rng.random() < 0.5:
        _add_masks(rng, leaves, options, (batch, heads, n, m), plain)
    if rng.random() < 0.3 and not getattr(options.get("pattern"), "rectangular", False):
        options["q_offset"] = rng.randint(-n - 2, m + 2)
    if grad:
        for leaf in leaves.values():
            leaf.requires_grad_()
    return leaves, options


def _add_masks(rng, leaves, options, sizes, plain):
    batch, heads, n, m = sizes
    kind = rng.choice(["none", "keys", "bool", "float", "both"])
    if kind in ("keys", "both"):
        options["key_mask"] = torch.rand(batch, m) < 0.6
        options["key_mask"][rng.randrange(batch)] = False  # a sequence of padding only
    rows = 1 if plain and kind == "both" else rng.choice([1, n])
    shape = (rng.choice([1, batch]), rng.choice([1, heads]), rows, m)
    if kind in ("bool", "both"):
        options["attn_mask"] = torch.rand(shape) < 0.7
    elif kind == "float":
        mask = torch.randn(shape, dtype=leaves["query"].dtype)
        options["attn_mask"] = mask.masked_fill(torch.rand(shape) < 0.2, -torch.inf)
        if not plain and bool(options["attn_mask"].isfinite().all()):
            leaves["attn_mask"] = options["attn_mask"]


def _add_terms(rng, leaves, options, batch, heads, n, dot):
    dtype, terms = leaves["query"].dtype, []
    if rng.random() < 0.3:
        leaves["table"] = torch.randn(rng.choice([1, heads]), 9, dtype=dtype)
        terms.append(s.Bias(leaves["table"], s.Relative(4)))
    if rng.random() < 0.3 and dot:
        leaves["dot_query"] = torch.randn(rng.choice([1, batch]), rng.choice([1, heads]), n, 3, dtype=dtype)
        leaves["dot_table"] = torch.randn(rng.choice([1, heads]), 16, 3, dtype=dtype)
        terms.append(s.Dot(leaves["dot_query"], leaves["dot_table"], s.T5Buckets(16, 20)))
    if rng.random() < 0.2:
        leaves["slopes"] = torch.rand(heads, dtype=dtype)
        terms.append(s.Slope(leaves["slopes"]))
    if rng.random() < 0.2:
        terms.append(s.SoftCap(2.0))
    options["score"] = terms
