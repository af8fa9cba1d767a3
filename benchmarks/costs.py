"""What each mechanism cannot do without, counted from its card at one setting: width 512, 8 heads of 64, float32.

``products`` counts multiplications and additions of the formula's matrix products, whichever way takes fewest, in a
forward pass. ``moved`` counts what must pass the memory at least once: what each projection reads and writes, queries,
keys, values and outputs of attention, and rows that are gathered from tables larger than a cache. Scores and features
never have to reach the memory. Exponentials, sorting and choosing are left out: the floor is below what they allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from floors import Cost
from regard.patterns import Causal, Fixed, Window

DIM, HEADS, WIDTH = 512, 8, 64
NUMBER = 4
"""Bytes of a float32."""
Options = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A mechanism with its options, and what a forward pass of N tokens costs.

    Attributes:
        cost: by N.
        mechanism: the registry name.
        options: what differs from the defaults.
        sized: options that depend on N.
        longest: growth is measured up to here.
    """

    cost: Callable[[int], Cost]
    mechanism: str
    options: Options = field(default_factory=dict[str, Any])
    sized: Callable[[int], Options] = lambda n: {}
    longest: int = 32768


def projections(n: float, count: float = 4) -> Cost:
    """``count`` square projections of n tokens; each reads and writes a tensor."""
    return Cost(2 * n * DIM**2 * count, 2 * n * DIM * NUMBER * count)


def pairs(n: float, m: float) -> Cost:
    """Scores and weighted values of n queries over m keys each, all heads: no score reaches the memory."""
    return Cost(4 * n * m * DIM, 4 * n * DIM * NUMBER)


def products(n: float, m: float) -> Cost:
    """n rows of 64 with m columns each, all heads, with nothing that has to be moved."""
    return Cost(2 * n * m * DIM)


def sparse_transformer(n: int) -> Cost:
    """The pairs that the pattern allows."""
    return projections(n) + pairs(n, (Causal() & Fixed(128, 32)).density(n) * n)


def nystrom(n: int) -> Cost:
    """Thin maps, the inverse (x = A A^T, 5 times x <- x p(x) of 2 products, 6 times p(x) y of 3), the convolution."""
    inverse = 2 * HEADS * (11 * 256**3 + 18 * 256**2 * WIDTH)
    return projections(n) + pairs(n, 256) + products(n, 2 * 256) + Cost(inverse) + products(n, 33)


def hashed(n: int, buckets: float, rounds: int = 8) -> Cost:
    """In every round all tokens are hashed, and each meets the 128 of its chunk and the one before."""
    return projections(n, 3) + pairs(n, rounds * 128) + products(n, rounds * buckets / 2)


def random_feature(n: int) -> Cost:
    """64 rows for queries and keys, then sums and readings of 128 features."""
    return projections(n) + products(n, 2 * 64) + pairs(n, 128)


def global_memory(n: int) -> Cost:
    """Long tokens see a window and the 16 global ones, which see all."""
    return projections(n) + pairs(n, Window(256).density(n) * n + 2 * 16)


def star_transformer(n: int) -> Cost:
    """2 rounds of 6 projections of the ring, 5 keys a node and a norm; the relay's queries and weights act on nodes."""
    relay, norm = Cost(4 * n * DIM * HEADS), Cost(0, 2 * n * DIM * NUMBER)
    once = projections(n, 6) + pairs(n, 5) + relay + norm
    return once + once


def bpt(n: int, causal: bool, step: int = 64, clip: int = 6) -> Cost:
    """Up to 64 nodes on each level and side, and as many products with the labels, which the levels from 6 on share."""
    read = [
        sum(min(max((i + 1 - step * (2**level - 1)) / 2**level, 0), step) for i in range(0, n, 16)) / (n // 16)
        for level in range(math.ceil(math.log2(n)))
    ]
    sides = 1 if causal else 2
    return projections(n) + pairs(n, sides * sum(read)) + products(n, sides * (sum(read[:clip]) + read[clip]))


def compressive(n: int, slots: int) -> Cost:
    """Segments of 512 after 512 states and ``slots`` slots: scores by content and by distance, and values.

    Keys and values of states are projected once; a quarter of the states becomes slots, by a convolution of 4.
    """
    starts = range(0, n, 512)
    keys = sum(256.5 + min(512, start) + min(slots, max(0, start - 512) / 4) for start in starts) / len(starts)
    cost = projections(n) + projections(1024 + slots, 1) + pairs(n, keys) + products(n, keys)
    return cost + projections(n, 1) + projections(n / 4, 2) if slots else cost


def memformer(n: int) -> Cost:
    """Segments of 128 and 32 slots: 8 projections of each token, 4 of the slots in each segment."""
    return projections(n, 8) + projections(n / 4, 4) + pairs(n, 128) + pairs(n, 32) + products(n, 2 * 32)


def clustered(n: int, topk: int) -> Cost:
    """63 planes, 10 assignments to 100 centroids as products of codes, 100 queries over all keys, ``topk`` for each."""
    kmeans = products(n, 63 + 10 * 100 * 63 / WIDTH)
    return projections(n) + kmeans + pairs(n, 100 + topk)


def routing(n: int, local: int) -> Cost:
    """Routing heads: affinities of queries and keys to K = sqrt(N) centroids, then w = N / K keys; others 2 w + 1."""
    clusters, window = routes(n)
    far, near = (HEADS - local) / HEADS, local / HEADS
    affinity, keys = products(n, 2 * clusters * far), far * window + near * Window(window).density(n) * n
    return projections(n) + affinity + pairs(n, keys)


def routes(n: int) -> tuple[int, int]:
    """K and w: near the square root of N, a power of two."""
    clusters = 2 ** round(math.log2(n) / 2)
    return clusters, n // clusters


def routing_options(n: int) -> Options:
    """They make K w = N."""
    clusters, window = routes(n)
    return {"clusters": clusters, "window": window}


def informer(n: int) -> Cost:
    """u = 5 ceil(ln N) keys are sampled for each query, and as many queries meet all keys."""
    u = min(n, 5 * math.ceil(math.log(n)))
    return projections(n) + products(n, u) + pairs(n, u)


def product_key_memory(n: int) -> Cost:
    """4 heads: queries of 256, 2 x 512 products of 128, and 32 rows of 512 read from a table of 0.5 GB."""
    rows = 4 * 32
    return projections(n, 2) + Cost(2 * n * 4 * 2 * 512 * 128) + Cost(2 * n * rows * DIM, n * rows * DIM * NUMBER)


def memory_compressed(n: int) -> Cost:
    """Every third token a slot, by a convolution of 3 x 64 channels a head; queries over the slots."""
    return projections(n) + products(n, 2 * WIDTH) + pairs(n, n / 3 + 1)


def synthesizer(n: int, count: float, logits: Cost) -> Cost:
    """``count`` projections, the logits, and the weighted values."""
    return projections(n, count) + logits + products(n, n)


def table(n: int) -> Cost:
    """Logits that are read from a table of N x N a head."""
    return Cost(0, HEADS * n * n * NUMBER)


def sinkhorn(n: int) -> Cost:
    """Blocks of 64: two blocks of keys a query, and mixtures of all blocks of keys and of values for each."""
    return projections(n) + pairs(n, 128) + products(n, 2 * n / 64)


def kronecker(n: int, queries: float) -> Cost:
    """H + W lines are projected to keys and values; all pixels, or the lines, ask. The map is read and written."""
    lines = sum(sides(n))
    asking = projections(n, 2) if queries == n else Cost(0, 2 * n * DIM * NUMBER)
    return asking + projections(lines, 2 if queries == n else 4) + pairs(queries, lines)


def axial(n: int) -> Cost:
    """Rows and columns, each with projections of its own."""
    height, width = sides(n)
    return projections(n) + pairs(n, height) + projections(n) + pairs(n, width)


def sides(n: int) -> tuple[int, int]:
    """Of a map of n pixels: a square, or twice as wide as high."""
    height = 2 ** (int(math.log2(n)) // 2)
    return height, n // height


CAUSAL: Options = {"causal": True}
COSTS: dict[str, Setting] = {
    "dense": Setting(lambda n: projections(n) + pairs(n, n), "full", longest=16384),
    "local, causal": Setting(
        lambda n: projections(n) + pairs(n, 257), "local", {**CAUSAL, "window": 256, "qkv_bias": False}
    ),
    # the global token's row needs no keys of its own: its queries are projected onto x, a query a head
    "longformer": Setting(lambda n: projections(n) + pairs(n, 513 + 1 + HEADS), "longformer", {"num_global": 1}),
    # 2 global blocks, 3 of the window, 3 random; two rows of blocks see all
    "bigbird": Setting(lambda n: projections(n) + pairs(n, min(10 * 64, n)), "bigbird"),
    "sparse_transformer, causal": Setting(sparse_transformer, "sparse_transformer", CAUSAL),
    # the state of 64 x 65 numbers is written to and read from
    "linear_transformer": Setting(lambda n: projections(n) + pairs(n, WIDTH), "linear_transformer"),
    "linear_transformer, causal": Setting(lambda n: projections(n) + pairs(n, WIDTH), "linear_transformer", CAUSAL),
    # 256 rows for queries and keys, then sums and readings of 256 features
    "performer": Setting(
        lambda n: projections(n) + products(n, 512) + pairs(n, 256), "performer", {"num_features": 256}
    ),
    "performer, causal": Setting(
        lambda n: projections(n) + products(n, 512) + pairs(n, 256), "performer", {**CAUSAL, "num_features": 256}
    ),
    # 256 mixtures are projected to keys and values, not N tokens
    "linformer": Setting(
        lambda n: projections(n, 2) + projections(256, 2) + products(n, 512) + pairs(n, 256), "linformer", {"rank": 256}
    ),
    "nystrom": Setting(nystrom, "nystrom", {"num_landmarks": 256, "conv_kernel": 33}),
    "reformer": Setting(lambda n: hashed(n, n / 64), "reformer", {"num_hashes": 8}, lambda n: {"num_buckets": n // 64}),
    # two mixtures of 8 x 8 for each pair
    "talking_heads": Setting(
        lambda n: projections(n) + pairs(n, n) + Cost(4 * n * n * HEADS**2), "talking_heads", longest=8192
    ),
    "random_feature": Setting(random_feature, "random_feature"),
    "random_feature, causal": Setting(random_feature, "random_feature", CAUSAL),
    "random_feature, gated": Setting(random_feature, "random_feature", {**CAUSAL, "gate": True}),
    # 256 features: the state is read for the key, written to, and read for the query
    "delta_rule": Setting(lambda n: projections(n) + pairs(n, 256) + products(n, 256), "delta_rule"),
    "slim_performer": Setting(lambda n: projections(n) + pairs(n, WIDTH), "slim_performer"),
    # two projections in, one out, 16 window ends a token; windows read and write a tensor
    "talk_convolutions": Setting(
        lambda n: projections(n, 3) + Cost(2 * n * DIM * 16, 2 * n * DIM * NUMBER), "talk_convolutions"
    ),
    "global_memory": Setting(global_memory, "global_memory", {"pattern": Window(256)}),
    "star_transformer": Setting(star_transformer, "star_transformer"),
    "bpt": Setting(lambda n: bpt(n, causal=False), "bpt"),
    "bpt, causal": Setting(lambda n: bpt(n, causal=True), "bpt", CAUSAL),
    "compressive": Setting(lambda n: compressive(n, 128), "compressive", {"compressed_length": 128}),
    "compressive, Transformer-XL": Setting(lambda n: compressive(n, 0), "compressive", {"compressed_length": 0}),
    "memformer": Setting(memformer, "memformer"),
    "clustered": Setting(lambda n: clustered(n, 0), "clustered", {"topk": None}),
    "clustered, improved": Setting(lambda n: clustered(n, 32), "clustered"),
    "routing": Setting(lambda n: routing(n, 4), "routing", {}, routing_options),
    "routing, no local heads": Setting(lambda n: routing(n, 0), "routing", {"local_heads": 0}, routing_options),
    "informer": Setting(informer, "informer"),
    "product_key_memory": Setting(product_key_memory, "product_key_memory", {"num_heads": 4}),
    "memory_compressed": Setting(memory_compressed, "memory_compressed", longest=16384),
    # 64 hidden features a head, then N logits of each
    "synthesizer, dense": Setting(lambda n: synthesizer(n, 3, products(n, n)), "synthesizer", longest=8192),
    "synthesizer, random": Setting(
        lambda n: synthesizer(n, 2, table(n)), "synthesizer", {"parts": "random"}, longest=8192
    ),
    "synthesizer, fixed_random": Setting(
        lambda n: synthesizer(n, 2, table(n)), "synthesizer", {"parts": "fixed_random"}, longest=8192
    ),
    # two factors of sqrt(N) entries a head, and a product for each pair
    "synthesizer, factorised_dense": Setting(
        lambda n: synthesizer(n, 2 + 2 * math.sqrt(n) * HEADS / DIM, Cost(HEADS * n * n)),
        "synthesizer",
        {"parts": "factorised_dense"},
        longest=8192,
    ),
    # two factors of rank 8
    "synthesizer, factorised_random": Setting(
        lambda n: synthesizer(n, 2, products(n, n * 8 / WIDTH)),
        "synthesizer",
        {"parts": "factorised_random"},
        longest=8192,
    ),
    # 4 rounds, 64 keys in each
    "smyrf": Setting(lambda n: projections(n) + pairs(n, 4 * 64), "smyrf"),
    "sinkhorn": Setting(sinkhorn, "sinkhorn"),
    "sinkhorn, causal": Setting(sinkhorn, "sinkhorn", CAUSAL),
    "axial, a map": Setting(axial, "axial"),
    "kronecker, a map": Setting(lambda n: kronecker(n, n), "kronecker"),
    "kronecker of lines, a map": Setting(lambda n: kronecker(n, sum(sides(n))), "kronecker", {"queries": "lines"}),
}
