"""The supplement's algorithms as loops in float64, on the weights of our modules; one protein, without a batch axis."""

import torch


def redrawn(module, seed=1):
    """With every parameter drawn at random: at their start all updates are 0."""
    make = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=make, dtype=torch.float64) / parameter.shape[-1] ** 0.5
    return module.double()


def normed(norm, x):
    mean = x.mean(-1, keepdim=True)
    spread = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(spread + 1e-5) * norm.weight + norm.bias


def mapped(linear, x):
    y = x @ linear.weight.T
    return y if linear.bias is None else y + linear.bias


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def softmax(logits):
    powers = [torch.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def of_head(x, heads, h):
    width = x.shape[-1] // heads
    return x[h * width : (h + 1) * width]


def gated(attention, x, context, bias, seen):
    """x (N, C), context (M, C'), bias[h][i][j], seen[j]."""
    heads, outs = attention.num_heads, []
    q, k, v = mapped(attention.query, x), mapped(attention.key, context), mapped(attention.value, context)
    for i in range(len(x)):
        found = []
        for h in range(heads):
            logits = []
            for j in range(len(context)):
                own = of_head(q[i], heads, h)
                logit = own @ of_head(k[j], heads, h) / own.numel() ** 0.5 + bias[h][i][j]
                logits.append(logit if seen[j] else torch.tensor(-1e9, dtype=torch.float64))
            found.append(sum(w * of_head(v[j], heads, h) for j, w in enumerate(softmax(logits))))
        mixed = torch.cat(found)
        if attention.gate is not None:
            mixed = mixed * sigmoid(mapped(attention.gate, x[i]))
        outs.append(mapped(attention.out, mixed))
    return torch.stack(outs)


def no_bias(heads, n, m):
    return torch.zeros(heads, n, m, dtype=torch.float64)


def row_attention(part, msa, pair, seen):
    """Algorithm 7."""
    bias = mapped(part.bias, normed(part.pair_norm, pair)).permute(2, 0, 1)
    rows = [normed(part.norm, row) for row in msa]
    return torch.stack([gated(part.attention, row, row, bias, seen[s]) for s, row in enumerate(rows)])


def column_attention(part, msa, seen):
    """Algorithm 8."""
    columns = []
    for r in range(msa.shape[1]):
        x = normed(part.norm, msa[:, r])
        columns.append(gated(part.attention, x, x, no_bias(part.attention.num_heads, len(x), len(x)), seen[:, r]))
    return torch.stack(columns, 1)


def global_column_attention(part, msa, seen):
    """Algorithm 19."""
    attention, columns = part.attention, []
    for r in range(msa.shape[1]):
        x = normed(part.norm, msa[:, r])
        real = [s for s in range(len(x)) if seen[s, r]]
        mean = sum((x[s] for s in real), torch.zeros_like(x[0])) / (len(real) + 1e-10)
        q, k, v = mapped(attention.query, mean), mapped(attention.key, x), mapped(attention.value, x)
        found = []
        for h in range(attention.num_heads):
            own = of_head(q, attention.num_heads, h)
            logits = [own @ k[s] / own.numel() ** 0.5 for s in range(len(x))]
            logits = [z if seen[s, r] else torch.tensor(-1e9, dtype=torch.float64) for s, z in enumerate(logits)]
            found.append(sum(w * v[s] for s, w in enumerate(softmax(logits))))
        gates = [1.0 if attention.gate is None else sigmoid(mapped(attention.gate, row)) for row in x]
        columns.append(torch.stack([mapped(attention.out, torch.cat(found) * gate) for gate in gates]))
    return torch.stack(columns, 1)


def triangle_attention(part, pair, seen):
    """Algorithms 13 and 14, edge by edge."""
    x, residues, attention = normed(part.norm, pair), len(pair), part.attention
    b = mapped(part.bias, x)
    out = torch.zeros_like(pair)
    for one in range(residues):
        if part.ending:  # edges ij and kj, bias b_ki
            edges, bias, known = x[:, one], b.permute(2, 1, 0), seen[:, one]
            out[:, one] = gated(attention, edges, edges, bias, known)
        else:  # edges ij and ik, bias b_jk
            edges, bias, known = x[one], b.permute(2, 0, 1), seen[one]
            out[one] = gated(attention, edges, edges, bias, known)
    return out


def triangle_multiplication(part, pair, seen):
    """Algorithms 11 and 12; for incoming edges the first half of the weights is b."""
    x, residues = normed(part.norm, pair), len(pair)
    sides = mapped(part.sides, x) * sigmoid(mapped(part.side_gates, x)) * seen[..., None]
    first, second = sides.chunk(2, -1)
    a, b = (second, first) if part.incoming else (first, second)
    out = torch.zeros_like(pair)
    for i in range(residues):
        for j in range(residues):
            if part.incoming:
                y = sum(a[k, i] * b[k, j] for k in range(residues))
            else:
                y = sum(a[i, k] * b[j, k] for k in range(residues))
            out[i, j] = sigmoid(mapped(part.gate, x[i, j])) * mapped(part.out, normed(part.out_norm, y))
    return out


def outer_product_mean(part, msa, seen):
    """Algorithm 10, the bias inside the division."""
    x = normed(part.norm, msa)
    a, b = (mapped(side, x) * seen[..., None] for side in (part.left, part.right))
    residues = msa.shape[1]
    out = torch.zeros(residues, residues, len(part.out.bias), dtype=torch.float64)
    for i in range(residues):
        for j in range(residues):
            both = sum(float(seen[s, i] and seen[s, j]) for s in range(len(msa)))
            products = sum(torch.outer(a[s, i], b[s, j]) for s in range(len(msa)))
            out[i, j] = mapped(part.out, products.flatten()) / (1e-3 + both)
    return out


def transition(part, x):
    """Algorithms 9 and 15."""
    return mapped(part.out, mapped(part.inner, normed(part.norm, x)).clamp(min=0))


def block(one, msa, pair, seen, pairs):
    """Algorithm 6, or Multimer's order."""
    if one.outer_first:
        pair = pair + outer_product_mean(one.outer, msa, seen)
    msa = msa + row_attention(one.row, msa, pair, seen)
    if one.global_columns:
        msa = msa + global_column_attention(one.global_column, msa, seen)
    else:
        msa = msa + column_attention(one.column, msa, seen)
    msa = msa + transition(one.msa_transition, msa)
    if not one.outer_first:
        pair = pair + outer_product_mean(one.outer, msa, seen)
    pair = pair + triangle_multiplication(one.outgoing, pair, pairs)
    pair = pair + triangle_multiplication(one.incoming, pair, pairs)
    pair = pair + triangle_attention(one.starting, pair, pairs)
    pair = pair + triangle_attention(one.ending, pair, pairs)
    return msa, pair + transition(one.pair_transition, pair)


def protein(sequences=4, residues=5, dim=6, pair_dim=4, *, keep=0.7, seed=0):
    """msa, pair and arbitrary masks, in which one sequence and one row of pairs have nothing."""
    make = torch.Generator().manual_seed(seed)
    msa = torch.randn(sequences, residues, dim, generator=make, dtype=torch.float64)
    pair = torch.randn(residues, residues, pair_dim, generator=make, dtype=torch.float64)
    seen = torch.rand(sequences, residues, generator=make) < keep
    pairs = torch.rand(residues, residues, generator=make) < keep
    seen[1], pairs[2], pairs[:, 3] = False, False, False
    return msa, pair, seen, pairs
