import pytest
import torch
from torch.testing import assert_close

from regard.memory import truncate
from regard.ops.bucket_memory import BucketMemory, continue_buckets

B, H, R, D, DV = 2, 3, 2, 4, 5


def equations(q, k, v, buckets, most):
    out = torch.empty_like(v)
    for b, h, i in torch.cartesian_prod(torch.arange(B), torch.arange(H), torch.arange(q.shape[2])).tolist():
        met = []
        for bucket in buckets[b, h]:
            met += [j for j in range(i) if bucket[j] == bucket[i]][-most:]
        weights = torch.softmax(k[b, h, met] @ q[b, h, i], 0)
        out[b, h, i] = weights @ v[b, h, met] if met else v[b, h, i]
    return out


@pytest.mark.parametrize("pieces", [(150,), (1,) * 150, (70, 1, 79)])
def test_the_last_of_each_bucket_are_met(pieces):
    q, k = torch.randn(2, B, H, 150, D, dtype=torch.float64)
    v = torch.randn(B, H, 150, DV, dtype=torch.float64)
    buckets = torch.randint(9, (B, H, R, 150))
    memory, outs = BucketMemory.start(B, H, R, D, DV, dtype=torch.float64), []
    for parts in zip(*(t.split(pieces, 2) for t in (q, k, v)), buckets.split(pieces, 3), strict=True):
        out, memory = continue_buckets(*parts, memory, 3)
        outs.append(out)
    assert_close(torch.cat(outs, 2), equations(q, k, v, buckets, 3), rtol=0, atol=1e-12)
    assert truncate(memory, 7).bucket.shape == (B, H, R, 7)
