"""The authors' modules once more, as einsums in float64 on parameters under their names; no batch axis, as there."""

import torch


class Params:
    """Parameters by path, drawn at random when they are first asked for, and all that were asked for."""

    def __init__(self, root="module", seed=0):
        self.root, self.make, self.state = root, torch.Generator().manual_seed(seed), {}

    def __call__(self, path, name, *shape):
        key = f"{'/'.join(part for part in (self.root, path) if part)}//{name}"
        if key not in self.state:
            fan = shape[0] if len(shape) > 1 else 4
            self.state[key] = torch.randn(*shape, generator=self.make, dtype=torch.float64) / fan**0.5
        return self.state[key]


def norm(p, path, x):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return x * p(path, "scale", x.shape[-1]) + p(path, "offset", x.shape[-1])


def linear(p, path, x, out):
    return x @ p(path, "weights", x.shape[-1], out) + p(path, "bias", out)


def attention(p, path, q_data, m_data, mask, config, bias=None, out_dim=None):
    """Attention: q_data (b, n, c), m_data (b, m, e), mask (b, m)."""
    heads = config["num_head"]
    key, value = config.get("key_dim", q_data.shape[-1]) // heads, config.get("value_dim", m_data.shape[-1]) // heads
    q = torch.einsum("bqa,ahc->bqhc", q_data, p(path, "query_w", q_data.shape[-1], heads, key)) / key**0.5
    k = torch.einsum("bka,ahc->bkhc", m_data, p(path, "key_w", m_data.shape[-1], heads, key))
    v = torch.einsum("bka,ahc->bkhc", m_data, p(path, "value_w", m_data.shape[-1], heads, value))
    logits = torch.einsum("bqhc,bkhc->bhqk", q, k) + (0 if bias is None else bias)
    weights = torch.where(mask[:, None, None] > 0, logits, -1e9).softmax(-1)
    mixed = torch.einsum("bhqk,bkhc->bqhc", weights, v)
    if config["gating"]:
        gate = torch.einsum("bqc,chv->bqhv", q_data, p(path, "gating_w", q_data.shape[-1], heads, value))
        mixed = mixed * torch.sigmoid(gate + p(path, "gating_b", heads, value))
    out = out_dim or q_data.shape[-1]
    return torch.einsum("bqhc,hco->bqo", mixed, p(path, "output_w", heads, value, out)) + p(path, "output_b", out)


def global_attention(p, path, x, mask, config):
    heads = config["num_head"]
    key, value = (config.get(name, x.shape[-1]) // heads for name in ("key_dim", "value_dim"))
    mean = (mask[..., None] * x).sum(1) / (mask.sum(1, keepdim=True) + 1e-10)
    q = torch.einsum("ba,ahc->bhc", mean, p(path, "query_w", x.shape[-1], heads, key)) / key**0.5
    k, v = x @ p(path, "key_w", x.shape[-1], key), x @ p(path, "value_w", x.shape[-1], value)
    weights = torch.where(mask[:, None] > 0, torch.einsum("bhc,bkc->bhk", q, k), -1e9).softmax(-1)
    mixed = torch.einsum("bhk,bkc->bhc", weights, v)[:, None]
    if config["gating"]:
        gate = torch.einsum("bqc,chv->bqhv", x, p(path, "gating_w", x.shape[-1], heads, value))
        mixed = mixed * torch.sigmoid(gate + p(path, "gating_b", heads, value))
    weight = p(path, "output_w", heads, value, x.shape[-1])
    return (torch.einsum("bqhc,hco->bqo", mixed, weight) + p(path, "output_b", x.shape[-1])).expand_as(x)


def row_attention(p, path, msa, mask, pair, config):
    x, pair = norm(p, f"{path}/query_norm", msa), norm(p, f"{path}/feat_2d_norm", pair)
    bias = torch.einsum("qkc,ch->hqk", pair, p(path, "feat_2d_weights", pair.shape[-1], config["num_head"]))
    return attention(p, f"{path}/attention", x, x, mask, config, bias)


def column_attention(p, path, msa, mask, config):
    x = norm(p, f"{path}/query_norm", msa.transpose(0, 1))
    return attention(p, f"{path}/attention", x, x, mask.T, config).transpose(0, 1)


def global_column_attention(p, path, msa, mask, config):
    x = norm(p, f"{path}/query_norm", msa.transpose(0, 1))
    return global_attention(p, f"{path}/attention", x, mask.T, config).transpose(0, 1)


def triangle_attention(p, path, pair, mask, config):
    turned = config["orientation"] == "per_column"
    if turned:
        pair, mask = pair.transpose(0, 1), mask.T
    x = norm(p, f"{path}/query_norm", pair)
    bias = torch.einsum("qkc,ch->hqk", x, p(path, "feat_2d_weights", x.shape[-1], config["num_head"]))
    out = attention(p, f"{path}/attention", x, x, mask, config, bias)
    return out.transpose(0, 1) if turned else out


def triangle_multiplication(p, path, pair, mask, config):
    c, mask = config["num_intermediate_channel"], mask[..., None]
    if config["fuse_projection_weights"]:
        x = norm(p, f"{path}/left_norm_input", pair)
        both = mask * linear(p, f"{path}/projection", x, 2 * c) * torch.sigmoid(linear(p, f"{path}/gate", x, 2 * c))
        left, right = both.split(c, -1)
    else:
        x = norm(p, f"{path}/layer_norm_input", pair)
        left, right = (
            mask * linear(p, f"{path}/{side}_projection", x, c) * torch.sigmoid(linear(p, f"{path}/{side}_gate", x, c))
            for side in ("left", "right")
        )
    y = torch.einsum(config["equation"], left, right)
    y = norm(p, f"{path}/{'center_norm' if config['fuse_projection_weights'] else 'center_layer_norm'}", y)
    y = linear(p, f"{path}/output_projection", y, pair.shape[-1])
    return y * torch.sigmoid(linear(p, f"{path}/gating_linear", x, pair.shape[-1]))


def outer_product_mean(p, path, msa, mask, config, out):
    c, mask = config["num_outer_channel"], mask[..., None]
    x = norm(p, f"{path}/layer_norm_input", msa)
    left, right = (mask * linear(p, f"{path}/{side}_projection", x, c) for side in ("left", "right"))
    y = torch.einsum("abc,ade,cef->bdf", left, right, p(path, "output_w", c, c, out)) + p(path, "output_b", out)
    return y / (1e-3 + torch.einsum("abc,adc->bdc", mask, mask))


def transition(p, path, x, config):
    y = norm(p, f"{path}/input_layer_norm", x)
    y = linear(p, f"{path}/transition1", y, int(x.shape[-1] * config["num_intermediate_factor"])).relu()
    return linear(p, f"{path}/transition2", y, x.shape[-1])


def triangles(p, pair, mask, config, order):
    for name in order:
        part = triangle_attention if "attention" in name else triangle_multiplication
        pair = pair + part(p, name, pair, mask, config[name])
    return pair


ORDER = (
    "triangle_multiplication_outgoing",
    "triangle_multiplication_incoming",
    "triangle_attention_starting_node",
    "triangle_attention_ending_node",
)


def evoformer_iteration(p, msa, pair, msa_mask, pair_mask, config, *, extra=False):
    def outer(pair):
        path = "outer_product_mean"
        return pair + outer_product_mean(p, path, msa, msa_mask, config[path], pair.shape[-1])

    if config["outer_product_mean"]["first"]:
        pair = outer(pair)
    name = "msa_row_attention_with_pair_bias"
    msa = msa + row_attention(p, name, msa, msa_mask, pair, config[name])
    name, column = "msa_column_attention", column_attention
    if extra:
        name, column = "msa_column_global_attention", global_column_attention
    msa = msa + column(p, name, msa, msa_mask, config["msa_column_attention"])
    msa = msa + transition(p, "msa_transition", msa, config["msa_transition"])
    if not config["outer_product_mean"]["first"]:
        pair = outer(pair)
    pair = triangles(p, pair, pair_mask, config, ORDER)
    return msa, pair + transition(p, "pair_transition", pair, config["pair_transition"])


def template_pair_block(p, pair, mask, config):
    pair = triangles(p, pair, mask, config, (*ORDER[2:], *ORDER[:2]))
    return pair + transition(p, "pair_transition", pair, config["pair_transition"])


def block_config(*, first=False, fused=False):
    """Of a small block whose parts all have widths of their own."""

    def own(orientation, rate=0.0, **more):
        return {"dropout_rate": rate, "orientation": orientation, "shared_dropout": True} | more

    def attends(orientation, heads, rate, **more):
        return own(orientation, rate, gating=True, num_head=heads, **more)

    def multiplies(equation, width):
        return own("per_row", 0.25, equation=equation, fuse_projection_weights=fused, num_intermediate_channel=width)

    return {
        "msa_row_attention_with_pair_bias": attends("per_row", 3, 0.15),
        "msa_column_attention": attends("per_column", 2, 0.0, key_dim=8),
        "msa_transition": own("per_row", num_intermediate_factor=3),
        "outer_product_mean": own("per_row", chunk_size=128, first=first, num_outer_channel=3),
        "triangle_multiplication_outgoing": multiplies("ikc,jkc->ijc", 5),
        "triangle_multiplication_incoming": multiplies("kjc,kic->ijc", 6),
        "triangle_attention_starting_node": attends("per_row", 2, 0.25),
        "triangle_attention_ending_node": attends("per_column", 1, 0.25, value_dim=6),
        "pair_transition": own("per_row", num_intermediate_factor=2),
    }


def alignment(sequences=4, residues=5, dim=12, pair_dim=8, seed=1):
    """msa, pair and masks of numbers, with a sequence and a row of pairs that have nothing."""
    make = torch.Generator().manual_seed(seed)
    msa = torch.randn(sequences, residues, dim, generator=make, dtype=torch.float64)
    pair = torch.randn(residues, residues, pair_dim, generator=make, dtype=torch.float64)
    msa_mask, pair_mask = (
        (torch.rand(shape, generator=make) < 0.7).double() for shape in (msa.shape[:2], pair.shape[:2])
    )
    msa_mask[1], pair_mask[2] = 0, 0
    return {"msa": msa, "pair": pair, "msa_mask": msa_mask, "pair_mask": pair_mask}
